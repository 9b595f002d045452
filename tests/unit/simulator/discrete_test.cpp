#include "simulator/discrete.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/errors.hpp"
#include "simulator/validate.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

/// bf16 caches of 8 kv heads of 128 with four query heads each, a profile's constants and a GPU's.
struct Setting {
  const Calibration& c = shipped_calibration();
  Gpu gpu;
  Machine machine;
  GpuConstants constants;
  const Profile& profile;
  explicit Setting(const char* slug, const char* kernel)
      : gpu(find_gpu(slug)), machine(machine_of(gpu)), constants(c.constants_of(gpu)), profile(c.profiles[static_cast<std::size_t>(c.find_profile(kernel))]) {}
  RaggedWork work(const std::vector<double>& sequences) const {
    RaggedWork w{.lengths = {}, .group = 4, .row_values = 128, .entry_bytes = 512, .entry_values = 256};
    for (int head = 0; head < 8; ++head) w.lengths.insert(w.lengths.end(), sequences.begin(), sequences.end());
    return w;
  }
  RaggedTime time(const std::vector<double>& sequences) const { return ragged_decode(machine, constants, profile, work(sequences), 32); }
};

}  // namespace

TEST_CASE("items share tensor units and memory by the root of squares, a free place takes the next item", "[unit]") {
  const DiscreteMachine m{.sms = 2, .bandwidth = 100, .entry_s = 0.03};
  // One item alone: 0.03 s of tensor work an entry and 4 bytes at 100 bytes/s.
  CHECK(discrete_s(m, {{10, 4}}) == Approx(10 * 0.05));
  // Four run at a time (two an SM): tensor work twice as long an entry, four times the bytes.
  CHECK(discrete_s(m, {{10, 2}, {10, 2}, {10, 2}, {10, 2}}) == Approx(10 * 0.1));
  // The long one goes on alone; a fifth item waits for a place.
  CHECK(discrete_s(m, {{10, 2}, {10, 2}, {10, 2}, {20, 2}}) == Approx(10 * 0.1 + 10 * std::hypot(0.03, 0.02)));
  CHECK(discrete_s(m, {{10, 0}, {10, 0}, {10, 0}, {10, 0}, {10, 0}}) == Approx(10 * 0.06 + 10 * 0.03));
  CHECK(discrete_s(m, {}) == 0);
}

TEST_CASE("equal lengths take exactly as long as the closed form says, unequal ones no less than a few percent below", "[unit]") {
  for (const auto& [gpu, kernel] : {std::pair{"rtx-4090", "fa2"}, {"rtx-pro-6000-server", "fa2"}, {"h100-sxm", "fa3_vllm"}}) {
    const Setting s(gpu, kernel);
    CAPTURE(gpu);
    const RaggedTime even = s.time(std::vector<double>(32, 4096));
    CHECK(even.penalty == 1);
    CHECK(even.seconds == even.uniform_s);
    std::vector<double> skewed(31, 2048);
    skewed.push_back(65536);
    const RaggedTime t = s.time(skewed);
    CHECK(t.penalty > 1.2);
    CHECK(t.seconds == Approx(t.uniform_s * t.penalty));
  }
}

TEST_CASE("with items alone, no constant of its own, uniform batches of large caches come out within three percent of the closed form", "[unit]") {
  for (const auto& [gpu, kernel] : {std::pair{"rtx-4090", "fa2"}, {"l40s", "fa2"}, {"l40s", "flashinfer"}, {"rtx-pro-6000-server", "fa2"}, {"h100-sxm", "fa3_vllm"}}) {
    const Setting s(gpu, kernel);
    std::vector<double> off;
    for (const double sequences : {32.0, 64.0, 128.0, 256.0})
      for (const double context : {4096.0, 8192.0, 16384.0}) {
        const RaggedWork w = s.work({});
        const double closed = decode_terms(s.machine, s.constants, s.profile,
                                           {.heads = 8 * sequences, .group = 4, .length = context, .bytes = 8 * sequences * context * 512, .values = 8 * sequences * context * 256, .row_values = 128,
                                            .tensor_flops = 8 * sequences * context * 4 * 512, .vector_flops = 8 * sequences * context * 4 * 5}, kCold, 32).seconds();
        off.push_back(std::fabs(discrete_uniform_s(s.machine, s.constants, s.profile, 8 * sequences, context, w, 32) / closed - 1));
      }
    CAPTURE(gpu, kernel);
    CHECK(median(off) < 0.03);
  }
}

TEST_CASE("heads that keep different budgets cost what their longest one makes wait", "[unit]") {
  const Setting s("h100-sxm", "fa3_vllm");
  std::vector<double> budgets;
  for (int i = 0; i < 512; ++i) budgets.push_back(i % 8 == 0 ? 8192 : 1024);
  RaggedWork w{.lengths = budgets, .group = 4, .row_values = 128, .entry_bytes = 512, .entry_values = 256};
  const RaggedTime t = ragged_decode(s.machine, s.constants, s.profile, w, 32);
  CHECK(t.penalty >= 1);
  CHECK(t.penalty < 2);
  w.lengths.clear();
  CHECK_THROWS_WITH(ragged_decode(s.machine, s.constants, s.profile, w, 32), "lengths are empty, must name at least one cache");
  w.lengths = {4, 0};
  CHECK_THROWS_WITH(ragged_decode(s.machine, s.constants, s.profile, w, 32), "length is 0, must be at least 1 entry");
}

TEST_CASE("spread lengths have the mean and the variation that were asked for", "[unit]") {
  for (const double variation : {0.0, 0.2, 0.57, 0.9, 1.5, 3.0}) {
    const std::vector<double> lengths = spread_lengths(512, 4000, variation);
    REQUIRE(lengths.size() == 512);
    const double mean = std::accumulate(lengths.begin(), lengths.end(), 0.0) / 512;
    double square = 0;
    for (const double l : lengths) square += (l - mean) * (l - mean) / 512;
    CAPTURE(variation);
    CHECK(mean == Approx(4000).epsilon(0.01));
    CHECK(std::sqrt(square) / mean == Approx(variation).epsilon(0.03).margin(1e-9));
    CHECK(*std::min_element(lengths.begin(), lengths.end()) >= 1);
  }
  CHECK(spread_lengths(1, 100, 1).size() == 1);
  CHECK(spread_lengths(0, 100, 1).empty());
}

TEST_CASE("published penalties of skewed batches and times of mixed ones come out, with nothing fitted to them", "[unit]") {
  const std::vector<EndToEndFigure> skewed = read_ragged(embedded_data("skewed_decode_sample.csv"), "skewed");
  REQUIRE(skewed.size() == 16);
  double error = 0, without = 0;
  for (const EndToEndFigure& f : skewed) error += std::fabs(f.predicted_s / f.measured_s - 1) / 16, without += std::fabs(1 / f.measured_s - 1) / 16;
  CHECK(error < 0.04);
  CHECK(error < without);
  const std::vector<EndToEndFigure> mixed = read_ragged(embedded_data("mixed_batch_attention_sample.csv"), "mixed");
  REQUIRE(mixed.size() == 10);
  double ours = 0, roofline = 0;
  for (const EndToEndFigure& f : mixed) ours += std::fabs(f.predicted_s / f.measured_s - 1) / 10, roofline += std::fabs(f.roofline_s / f.measured_s - 1) / 10;
  CHECK(ours < 0.18);
  CHECK(ours < 0.5 * roofline);
  CHECK_THROWS_WITH(read_ragged("gpu,model,heads,kv_heads,head_dim,n_decode,n_big,kv_small,kv_big,uniform_mean_us,skewed_us\nh100,m,32,8,128,2,3,8,16,1,1\n", "t"), "t line 2: n_big is \"3\", must be at most n_decode");
  ValidationReport report;
  add_end_to_end(report, skewed);
  CHECK(to_text(report).find("skewed_decode") != std::string::npos);
}

#include "simulator/kernel_model.hpp"

#include <cmath>

#include "core/kernels/attention.hpp"
#include "core/kernels/store.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

// Round figures, so that the example can be followed by hand.
Gpu toy() {
  return parse_gpu(
      "h100:sm_count=100,clock=1GHz,hbm_bandwidth=1TB/s,attention_fraction=0.8,bf16_flops=1000TFLOPS,fp32_flops=100TFLOPS,attention_floor=10us,"
      "launch_graph=1us");
}

kernels::DecodeAttention llama_layer(int sequences, std::int64_t tokens) {
  return {.sequences = sequences, .kv_heads = 8, .q_per_kv = 4, .k_dim = 128, .v_dim = 128, .tokens = Tokens(tokens)};
}

}  // namespace

TEST_CASE("a decode-attention call is its floor, the smooth maximum of its terms and a tail, worked by hand", "[unit]") {
  const KernelCall call = llama_layer(16, 4096).call(1);
  // Cache: 16 x 8 x 4096 x 256 values x 2 B = 268,435,456 B; queries 16 x 32 x 128 x 2 B = 131,072 B;
  // partials 16 x 32 rows x 16 spans x 130 x 4 B = 4,259,840 B.
  const double bytes = 268435456.0 + 131072.0 + 4259840.0;
  REQUIRE(static_cast<double>(call.traffic.read_bytes + call.traffic.write_bytes) == bytes);
  REQUIRE(call.items == 16 * 8 * 16);
  const KernelModel model(toy(), true, 0, false);
  const KernelTerms t = model.terms(call);
  CHECK(t.floor_s == Approx(10e-6));
  CHECK(t.byte_s == Approx(bytes / 0.8e12));                               // 341.0 us
  CHECK(t.item_s == Approx(bytes / 2048 * 0.7e-6 / 32768));                // 2.8 us: 133 KB at 32 KiB per 0.7 us
  CHECK(t.start_s == Approx(2048.0 / 100 * 0.5e-6));                       // 10.2 us
  CHECK(t.value_s == Approx(134217728.0 / (32 * 100 * 1e9)));              // 41.9 us at 32 values a clock and SM
  CHECK(t.tensor_s == Approx(2.0 * 512 * 4096 * 256 / (0.46 * 1000e12)));  // 2.3 us
  CHECK(t.vector_s == Approx(5.0 * 512 * 4096 / (0.088 * 100e12)));        // 1.2 us
  CHECK(t.tail_s == Approx(0.07 * bytes / 2048 * 100 / 0.8e12));           // 1.2 us
  const KernelTime time = model.time(call);
  CHECK(time.ideal_s == Approx(10e-6 + 341.05e-6 * std::pow(1 + std::pow(41.94 / 341.05, 4), 0.25) + 1.17e-6).epsilon(1e-3));
  CHECK(time.released_s == time.ideal_s);
  CHECK(time.bound == Bound::memory);
  CHECK_FALSE(time.uncalibrated);
}

TEST_CASE("one short sequence is bound by latency, a long one by the bytes that one item keeps in flight", "[unit]") {
  const KernelModel model(toy(), true, 0, false);
  CHECK(model.time(llama_layer(1, 64).call(1)).bound == Bound::latency);
  const KernelTerms t = model.terms(llama_layer(1, 4096).call(1));
  CHECK(t.item_s == Approx(133296.0 * 0.7e-6 / 32768).epsilon(0.01));
}

TEST_CASE("packed integers are unpacked at a rate; the released class pays once for each query head", "[unit]") {
  kernels::DecodeAttention a = llama_layer(16, 4096);
  a.k_format = a.v_format = {.kind = CodeKind::integer, .bits = 4, .axis = GroupAxis::channels, .group_size = 32, .group_bits = 32};
  const KernelModel model(toy(), true, 0, false);
  const KernelTerms t = model.terms(a.call(1));
  CHECK(t.value_s == Approx(134217728.0 / (40 * 100 * 1e9)));
  CHECK(t.released_value_s == Approx(134217728.0 * 4 / (4 * 100 * 1e9)));
  const KernelTime time = model.time(a.call(1));
  CHECK(time.uncalibrated);
  CHECK(time.released_s > 5 * time.ideal_s);
  CHECK(time.ideal_s < model.time(llama_layer(16, 4096).call(1)).ideal_s);
}

TEST_CASE("a warm cache runs at L2 speed only when it is asked for and fits", "[unit]") {
  const KernelCall small = llama_layer(4, 1024).call(1), large = llama_layer(64, 4096).call(1);
  const KernelModel cold(toy(), true, 0, false), warm(toy(), true, 0, true);
  CHECK(warm.time(small).ideal_s < cold.time(small).ideal_s);
  CHECK(warm.time(large).ideal_s == cold.time(large).ideal_s);
}

TEST_CASE("without graphs each launch costs the engine's host time", "[unit]") {
  const KernelCall append = kernels::Append{.sequences = 1, .kv_heads = 8, .k_dim = 128, .v_dim = 128}.call(1);
  const double graph = KernelModel(toy(), true, 0, false).time(append).ideal_s, eager = KernelModel(toy(), false, 10e-6, false).time(append).ideal_s;
  CHECK(eager - graph == Approx(9e-6));
}

TEST_CASE("a transfer takes its submissions or its bytes over the link, whichever is longer", "[unit]") {
  const KernelModel model(parse_gpu("h100:pcie=50GB/s"), true, 0, false);
  CHECK(model.terms(kernels::Transfer{.copies = 100, .bytes = 1000}.call(1)).link_s == Approx(600e-6));
  CHECK(model.terms(kernels::Transfer{.copies = 1, .bytes = 40'000'000}.call(1)).link_s == Approx(1e-3));
  CHECK(model.time(kernels::Transfer{.copies = 1, .bytes = 1}.call(1)).bound == Bound::link);
}

TEST_CASE("the formula of a call names every term with its number", "[unit]") {
  const std::string line = kernel_formula(KernelModel(toy(), true, 0, false), llama_layer(16, 4096).call(32));
  CHECK(line.find("decode_attention = 32 x (floor 10.00 us") == 0);
  CHECK(line.find("272826368 B / 800.0 GB/s = 341.03 us") != std::string::npos);
  CHECK(line.find("bound by memory") != std::string::npos);
}

#include "simulator/gpu.hpp"

#include <nlohmann/json.hpp>
#include <set>

#include "core/errors.hpp"
#include "simulator/gpu_json.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

std::string refusal(const std::string& text) {
  try {
    parse_gpu(text);
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("every figure of every GPU has a source, and what a prediction needs is known", "[unit]") {
  REQUIRE(all_gpus().size() >= 16);
  for (const Gpu& gpu : all_gpus()) {
    CAPTURE(gpu.slug);
    for (const FigureField& f : figure_fields()) {
      CAPTURE(std::string(f.key));
      const Figure& figure = gpu.*f.member;
      CHECK(figure.known() == !figure.source.empty());
      if (figure.known() && f.member != &Gpu::nvlink_bandwidth) CHECK(*figure.value > 0);
    }
    CHECK(*gpu.hbm_bandwidth.value > 2e11);
    CHECK(*gpu.memory_bytes.value >= 24 * 0x1p30);
    CHECK(gpu.attention_fraction.or_else(0.5) < 1.0);
  }
}

TEST_CASE("the GPUs of the issue are there under slug, name and alias, and no name means two", "[unit]") {
  for (const char* name : {"a100-sxm-40gb", "A100-SXM-80GB", "a100-pcie-40gb", "a100-pcie-80gb", "h100", "H100-SXM-80GB", "h100-pcie", "H200", "B200",
                           "L40S", "A6000", "RTX-3090", "rtx-4090", "RTX-5090", "rtx-6000-ada", "rtx-pro-6000", "RTX-PRO-6000-BW", "H20", "A100-SXM-40GB"})
    CHECK_NOTHROW(find_gpu(name));
  CHECK(find_gpu("RTX-PRO-6000-BW").slug == "rtx-pro-6000-server");
  CHECK(find_gpu("h100").slug == "h100-sxm");
  std::set<std::string> names;
  for (const Gpu& gpu : all_gpus()) {
    CHECK(names.insert(gpu.slug).second);
    for (const std::string& alias : gpu.aliases) CHECK((alias == gpu.slug || names.insert(alias).second));
  }
}

TEST_CASE("capacities are binary and bandwidths decimal", "[unit]") {
  CHECK(*find_gpu("rtx-4090").memory_bytes.value == 24.0 * 1024 * 1024 * 1024);
  CHECK(*find_gpu("rtx-4090").hbm_bandwidth.value == 1008e9);
  CHECK(*find_gpu("a100-sxm-80gb").l2_bytes.value == 40.0 * 1024 * 1024);
}

TEST_CASE("a change replaces a figure, says so, and leaves the rest", "[unit]") {
  const Gpu gpu = parse_gpu("h100-sxm:hbm_bandwidth=6.7TB/s,l2=100MiB");
  CHECK(*gpu.hbm_bandwidth.value == 6.7e12);
  CHECK(*gpu.l2_bytes.value == 100.0 * 1024 * 1024);
  CHECK(gpu.l2_bytes.source == "what-if");
  CHECK(gpu.sm_count.value == find_gpu("h100").sm_count.value);
  CHECK(*parse_gpu("h100:memory=96GiB").memory_bytes.value == 96 * 0x1p30);
  CHECK(*parse_gpu("h100:memory=96GB").memory_bytes.value == 96e9);
  CHECK(*parse_gpu("h100:launch_graph=2us").launch_graph_s.value == 2e-6);
  CHECK(*parse_gpu("h100:tdp=350W").tdp_watts.value == 350);
  CHECK(*parse_gpu("h100:sm_count=144").sm_count.value == 144);
  CHECK(*parse_gpu("h100:attention_fraction=80%").attention_fraction.value == 0.8);
  CHECK(*parse_gpu("rtx-4090:nvlink=0GB/s").nvlink_bandwidth.value == 0);
}

TEST_CASE("a faster tensor peak takes the achieved rate along unless that is changed too", "[unit]") {
  CHECK(*parse_gpu("h100:bf16_flops=1978TFLOPS").gemm_bf16_flops.value == 1530e12);
  CHECK(*parse_gpu("h100:bf16_flops=1978TFLOPS,gemm_bf16_flops=900TFLOPS").gemm_bf16_flops.value == 900e12);
}

TEST_CASE("the canonical text reads back to the same figures", "[unit]") {
  CHECK(canonical(find_gpu("h100")) == "h100-sxm");
  for (const char* text : {"h100:hbm_bandwidth=6.7TB/s,l2=100MiB", "l40s:bf16_flops=123.456TFLOPS", "b200:launch_graph=0.3us,price=3", "h100:l2=50MiB"}) {
    const Gpu a = parse_gpu(text), b = parse_gpu(canonical(a));
    for (const FigureField& f : figure_fields()) CHECK((a.*f.member).value == (b.*f.member).value);
    CHECK(canonical(a) == canonical(b));
  }
  CHECK(canonical(parse_gpu("h100:l2=50MiB")) == "h100-sxm");
}

TEST_CASE("a wrong GPU, figure, number or unit gets its sentence", "[unit]") {
  CHECK(refusal("h10") == "\"h10\": unknown GPU; did you mean \"h100\"?");
  CHECK(refusal("h100:hbm_bandwith=6TB/s") == "\"hbm_bandwith\": unknown figure of a GPU; did you mean \"hbm_bandwidth\"?");
  CHECK(refusal("h100:hbm_bandwidth=6.7TB") ==
        "hbm_bandwidth is \"6.7TB\", must be a positive rate with B/s, KiB/s to TiB/s or KB/s to TB/s, as in 6.7TB/s");
  CHECK(refusal("h100:sm_count=-3") == "sm_count is \"-3\", must be a plain positive number, as in 132");
  CHECK(refusal("h100:l2=nanMiB").starts_with("l2 is \"nanMiB\""));
  CHECK(refusal("h100:l2") == "l2 is \"\", must be a positive size with B, KiB, MiB, GiB, TiB, KB, MB, GB or TB, as in 100MiB");
  CHECK(refusal("h100:attention_fraction=1.2").starts_with("attention_fraction is \"1.2\""));
  CHECK(refusal("h100:memory=0GiB").starts_with("memory is \"0GiB\""));
  CHECK(refusal("h100:clock=1e400GHz").starts_with("clock is"));
}

TEST_CASE("the JSON record carries unit, source and provenance of every figure", "[unit]") {
  const nlohmann::json h100 = to_json(find_gpu("h100"));
  CHECK(h100["slug"] == "h100-sxm");
  CHECK(h100["figures"]["hbm_bandwidth"]["value"] == 3350e9);
  CHECK(h100["figures"]["hbm_bandwidth"]["unit"] == "bytes_per_s");
  CHECK(h100["figures"]["hbm_bandwidth"]["provenance"] == "published");
  CHECK(h100["figures"]["launch_graph"]["provenance"] == "measured");
  CHECK(h100["figures"]["usd_per_hour"]["provenance"] == "assumed");
  CHECK(h100["figures"]["fp4_flops"].is_null());
  CHECK(to_json(parse_gpu("h100:l2=100MiB"))["figures"]["l2"]["provenance"] == "assumed");
}

TEST_CASE("a record without source, with an unknown unit or figure is refused", "[unit]") {
  nlohmann::json good = {{"slug", "x"}, {"name", "X"}, {"architecture", "A"}, {"compute_capability", "9.0"}, {"figures", nlohmann::json::object()}};
  const auto sentence = [](const nlohmann::json& record) -> std::string {
    try {
      gpu_from_json(record);
    } catch (const InvalidArgument& e) {
      return e.what();
    }
    return "accepted";
  };
  CHECK(sentence(good) == "GPU record x: sm_count is missing, must be positive");
  nlohmann::json bad = good;
  bad["figures"]["sm_count"] = {{"value", 10}, {"unit", "count"}};
  CHECK(sentence(bad) == "GPU record x: sm_count needs a value, a unit and a source");
  bad["figures"]["sm_count"] = {{"value", 10}, {"unit", "GiB"}, {"source", "s"}};
  CHECK(sentence(bad) == "GPU record x: sm_count must be a plain positive number, as in 132");
  bad = good;
  bad["figures"]["warp_size"] = {{"value", 32}, {"unit", "count"}, {"source", "s"}};
  CHECK(sentence(bad) == "GPU record x: \"warp_size\" is no figure");
}

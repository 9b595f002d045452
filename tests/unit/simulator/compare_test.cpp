#include "simulator/compare.hpp"

#include <fstream>
#include <sstream>

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

TEST_CASE("the kernel model beats both rooflines on a sample of published timings", "[unit]") {
  std::ifstream file(std::string(KVATLAS_SOURCE_DIR) + "/simulator/data/decode_attention_sample.csv");
  REQUIRE(file);
  const ComparisonReport report = compare_decode_attention(file);
  const Comparison& all = report.by_gpu.back();
  CHECK(all.gpu == "*");
  CHECK(all.rows == 60);
  CHECK(report.by_gpu.size() == 9);
  CHECK(all.ours.mean < 0.15);
  CHECK(all.ours.mean < 0.5 * all.roofline.mean);
  CHECK(all.ours.mean < all.scaled.mean);
  CHECK(all.ours.median < all.scaled.median);
  for (const Comparison& gpu : report.by_gpu) {
    CAPTURE(gpu.gpu);
    CHECK(gpu.ours.mean < gpu.roofline.mean);
  }
}

TEST_CASE("warm and short rows are counted, not compared", "[unit]") {
  std::istringstream csv(
      "# comment\ngpu,heads,kv_heads,head_dim,window,batch,context,kv_dtype,measured_ms,l2x\nH100-SXM-80GB,32,8,128,0,64,8192,bf16,0.7,40\n"
      "H100-SXM-80GB,32,8,128,0,1,8192,bf16,0.02,0.6\nH100-SXM-80GB,32,8,128,0,4096,512,bf16,0.9,20\n");
  const ComparisonReport report = compare_decode_attention(csv);
  CHECK(report.by_gpu.back().rows == 1);
  CHECK(report.skipped == 2);
  // 2^31 B at 3350 GB/s: 0.64104 ms of 0.7 measured.
  CHECK(report.by_gpu.front().roofline.mean == Approx(1 - 0.64104 / 0.7).epsilon(1e-4));
  CHECK(to_text(report).find("not compared (warm or short): 2 rows") != std::string::npos);
}

TEST_CASE("a broken file is refused by line and field", "[unit]") {
  const std::string header = "gpu,heads,kv_heads,head_dim,window,batch,context,kv_dtype,measured_ms,l2x\n";
  const auto sentence = [](const std::string& text) -> std::string {
    std::istringstream csv(text);
    try {
      compare_decode_attention(csv);
    } catch (const InvalidArgument& e) {
      return e.what();
    }
    return "accepted";
  };
  CHECK(sentence("gpu,heads\n") == "decode-attention timings: column kv_heads is missing");
  CHECK(sentence(header + "h100,1\n") == "decode-attention timings: line 2 has 2 cells, must have 10");
  CHECK(sentence(header + "h100,32,8,128,0,64,8192,bf16,fast,40\n") == "decode-attention timings: line 2: measured_ms is \"fast\", must be a number");
  CHECK(sentence(header + "h10,32,8,128,0,64,8192,bf16,1,40\n") == "\"h10\": unknown GPU; did you mean \"h100\"?");
  CHECK(sentence(header + "h100,33,8,128,0,64,8192,bf16,1,40\n") ==
        "decode-attention timings: line 2: heads is 33, must be a multiple of kv_heads (8)");
}

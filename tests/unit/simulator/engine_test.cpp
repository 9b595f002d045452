#include "simulator/engine.hpp"

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

TEST_CASE("engines and weight formats are found by name, with a suggestion otherwise", "[unit]") {
  CHECK(std::string(default_engine().slug) == "vllm");
  CHECK(find_engine("sglang").page.value == 1);
  CHECK_FALSE(find_engine("transformers").cuda_graphs);
  for (const Engine& e : all_engines()) CHECK(std::string(e.source).size() > 10);
  CHECK(parse_weight_format("int4_wo") == WeightFormat::int4_wo);
  CHECK(bits_per_weight(WeightFormat::int4_wo) == 4 + 20.0 / 128);
  CHECK(std::string(name_of(WeightFormat::fp8)) == "fp8");
  CHECK(bits_per_weight(parse_weight_format("batquant")) == 4 + 8.0 / 32);
  CHECK(bits_per_weight(parse_weight_format("ptq161")) == 1.61);
  CHECK_THROWS_WITH(find_engine("vlm"), "\"vlm\": unknown engine; did you mean \"vllm\"?");
  CHECK_THROWS_WITH(parse_weight_format("fp88"), "\"fp88\": unknown weight format; did you mean \"fp8\"?");
}

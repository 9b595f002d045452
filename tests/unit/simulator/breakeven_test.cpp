#include "simulator/breakeven.hpp"

#include <cmath>

#include "core/errors.hpp"
#include "models/registry.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

BreakevenQuestion question(const char* recipe, const char* gpu) {
  BreakevenQuestion q;
  q.deployment = {.model = &models::find_model("llama-3.1-8b"), .gpu = find_gpu(gpu), .recipe = Recipe::parse(recipe)};
  return q;
}

double gain(const BreakevenQuestion& q, std::int64_t context, int batch) {
  Deployment other = q.deployment;
  other.recipe = q.against;
  return Evaluator(other).step(Tokens(context), batch).step_s / Evaluator(q.deployment).step(Tokens(context), batch).step_s;
}

}  // namespace

TEST_CASE("a border is where the order changes: behind before it, ahead from it on", "[unit]") {
  BreakevenQuestion q = question("quest", "h100-sxm");
  q.batch = 4;
  const Breakeven b = breakeven(q);
  REQUIRE(b.context);
  REQUIRE(*b.context > 16);
  REQUIRE(gain(q, *b.context, 4) > 1.001);
  REQUIRE(gain(q, *b.context - 1, 4) <= 1.001);
  for (std::int64_t n = *b.context; n < 1 << 20; n = n * 3 / 2) REQUIRE(gain(q, n, 4) > 1.001);
  REQUIRE(b.gain == gain(q, 32768, 4));
  REQUIRE(b.reason.find("at 32768 tokens and batch 4 a step of quest takes ") == 0);
  REQUIRE(b.context_why.find("tokens on, as far as 1048576") != std::string::npos);
}

TEST_CASE("a method that only adds work never pays, and the sentence says so", "[unit]") {
  BreakevenQuestion q = question("h2o", "h100-sxm");
  q.against = Recipe::parse("streaming_llm");
  const Breakeven b = breakeven(q);
  REQUIRE_FALSE(b.context);
  REQUIRE_FALSE(b.batch);
  REQUIRE_FALSE(b.bandwidth);
  REQUIRE(b.context_why.find("not ahead at 1048576 tokens: 0.") == 0);
}

TEST_CASE("fewer bytes pay below a bandwidth, and at that bandwidth both are equal", "[unit]") {
  BreakevenQuestion q = question("fp8_kv", "h100-sxm");
  q.batch = 16;
  const Breakeven b = breakeven(q);
  if (b.bandwidth) {
    REQUIRE(b.wins_below == true);
    q.deployment.gpu.hbm_bandwidth.value = *b.bandwidth;
    REQUIRE(gain(q, 32768, 16) == Approx(1.001).epsilon(1e-3));
  } else {
    REQUIRE(b.bandwidth_why.find("ahead at every bandwidth") == 0);
  }
}

TEST_CASE("with an output whole workloads are compared, as far as they fit", "[unit]") {
  BreakevenQuestion q = question("fp8_kv", "rtx-4090");
  q.output = Tokens(256);
  q.context = Tokens(8192);
  q.batch = 4;
  const Breakeven b = breakeven(q);
  REQUIRE(b.context_why.find("the longest that fits") != std::string::npos);
  REQUIRE(b.gain > 1);
  q.deployment.model = &models::find_model("llama-3.1-70b");
  const Breakeven none = breakeven(q);
  REQUIRE(none.context_why == "fp8_kv does not fit");
  REQUIRE_FALSE(none.context);
}

TEST_CASE("a question outside the searched range is refused", "[unit]") {
  BreakevenQuestion q = question("fp8_kv", "h100-sxm");
  q.context = Tokens(2 << 20);
  REQUIRE_THROWS_WITH(breakeven(q), "context is 2097152, must be from 1 to the longest searched (1048576)");
  q = question("fp8_kv", "h100-sxm");
  q.batch = 0;
  REQUIRE_THROWS_WITH(breakeven(q), "batch is 0, must be from 1 to the largest searched (1024)");
}

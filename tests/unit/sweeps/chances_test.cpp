#include "sweeps/chances.hpp"

#include "core/errors.hpp"
#include "models/registry.hpp"
#include "simulator/gpu.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sweep;

TEST_CASE("two equal choices are each the best half of the time, and what one gives away shrinks once either is measured", "[unit]") {
  const UncertainRate a{.rate = 10, .low = 8, .high = 12.5};
  const ChanceFigures f = sample_chances(std::vector<UncertainRate>{a, a}, 7);
  REQUIRE(f.of.size() == 2);
  CHECK(f.of[0].best + f.of[1].best == Approx(1));
  CHECK(f.of[0].best == Approx(0.5).margin(0.06));
  // The difference of two normals of spread s = log(1.25) / 1.2816 has spread 1.414 s; its positive part averages 0.399 of that.
  CHECK(f.of[0].regret == Approx(0.399 * 1.414 * 0.2231 / 1.2816).epsilon(0.15));
  CHECK(f.regret <= f.of[0].regret);
  // Knowing one leaves the other's spread alone: the mean shrinks from 0.399 of 1.414 s by about 0.399 of s.
  CHECK(f.regret_measured < 0.5 * f.regret);
  CHECK(f.regret_measured > 0);
}

TEST_CASE("errors that all share do not touch the order; a choice whose interval lies above is always the best", "[unit]") {
  const ChanceFigures shared = sample_chances(std::vector<UncertainRate>{{.rate = 10, .low = 8, .high = 12.5, .own = 0}, {.rate = 9.9, .low = 7.92, .high = 12.375, .own = 0}}, 1);
  CHECK(shared.of[0].best == Approx(1));
  CHECK(shared.of[0].regret == 0);
  CHECK(shared.of[1].regret == Approx(0.01).epsilon(1e-6));
  CHECK(shared.regret_measured == shared.regret);
  const ChanceFigures apart = sample_chances(std::vector<UncertainRate>{{.rate = 1, .low = 0.9, .high = 1.1}, {.rate = 10, .low = 9, .high = 11}}, 1);
  CHECK(apart.of[1].best == Approx(1));
  CHECK(apart.of[0].regret == Approx(0.9).epsilon(0.01));
}

TEST_CASE("where no kernel was timed draws centre between the two bounds, and its measurement tells most", "[unit]") {
  // The ideal kernel would win, the released one would lose: neither end is more likely.
  const std::vector<UncertainRate> choices{{.rate = 10, .low = 9.5, .high = 10.5}, {.rate = 19, .low = 5, .high = 20, .bounds = true}};
  const ChanceFigures f = sample_chances(choices, 3);
  CHECK(f.of[1].best == Approx(0.5).margin(0.06));
  CHECK(f.measure == 1);
  CHECK(f.regret_measured < 0.2 * f.regret);
  CHECK(sample_chances(choices, 3).regret == f.regret);  // a seed's draws are the same bits
  CHECK(sample_chances(choices, 4).regret != f.regret);
}

TEST_CASE("a rate outside its interval is refused", "[unit]") {
  CHECK_THROWS_WITH(sample_chances(std::vector<UncertainRate>{{.rate = 3, .low = 1, .high = 2}}, 1), "rate is 3, must be positive and within its interval (1 to 2)");
  CHECK_THROWS_AS(sample_chances({}, 1), InvalidArgument);
}

TEST_CASE("recommend says how sure it is of what it advises and which measurement would tell most", "[unit]") {
  RecommendRequest r;
  r.deployment.model = &models::find_model("llama-3.1-8b");
  r.deployment.gpu = sim::find_gpu("rtx-4090");
  r.workload.prompt = 32768_tok, r.workload.output = 512_tok;
  r.candidates = {Recipe::parse("full"), Recipe::parse("fp8_kv"), Recipe::parse("qserve_kv4"), Recipe::parse("nvfp4_kv"), Recipe::parse("knorm")};
  const RecommendReport report = recommend(r);
  REQUIRE(report.advised);
  REQUIRE(report.advised->chance);
  CHECK(report.advised->chance->offered);
  double all = 0;
  for (const Recommendation& one : report.deployable) {
    REQUIRE(one.chance);
    all += one.chance->best;
    CHECK(one.chance->among == static_cast<int>(report.deployable.size()));
    CHECK(one.chance->regret >= 0);
  }
  CHECK(all == Approx(1));
  for (const Recommendation& one : report.research) CHECK_FALSE(one.chance->offered);
  REQUIRE(report.settle);
  CHECK(report.settle->regret_measured < report.settle->regret);
  CHECK(report.settle->command.starts_with(cat("kvatlas bench --model llama-3.1-8b --method \"", report.settle->recipe, "\" --context 33024 --batch ")));
}

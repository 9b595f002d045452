#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/eviction/cake/scores.hpp"
#include "reference/primitives/eviction/allocators.hpp"
#include "tests/catch.hpp"
#include "tests/support/fixture_f1.hpp"
#include "tests/support/scenario.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("cake: the worked example's preference and scores", "[unit]") {
  const Traced f1 = fixture_f1();
  const LayerClass& c = f1.shape().classes.front();
  TokenRows rows(1, 2, 2, Dtype::f32);
  rows.append(f1.k(), f1.k());
  const RopeTable rope(c.rope);
  const eviction::Scene scene{.c = c, .place = {}, .rows = rows, .queries = f1.q().slice(1, 4, 2), .rope = rope};
  namespace parts = methods::cake_parts;
  REQUIRE(parts::preference({.tau1 = 1, .tau2 = 1e9}, scene) == Approx(4.599943).epsilon(1e-6));
  REQUIRE(parts::preference({.tau1 = 1e9, .tau2 = 1}, scene) == Approx(.054691).epsilon(2e-5));
  REQUIRE(parts::preference({.tau1 = 1.6, .tau2 = .4}, scene) == Approx(.00181554).epsilon(1e-4));
  const std::vector<float> scores = parts::token_scores({.gamma = 200, .kernel = 1}, 2_tok, scene).front();
  const std::vector<double> expected{1.615938, 1.875152, 2.394583, .317410};
  REQUIRE(scores.size() == 4);
  for (std::size_t t = 0; t < 4; ++t) CHECK(static_cast<double>(scores[t]) == Approx(expected[t]).margin(2e-5));
}

TEST_CASE("cake: shares rounded down, what is above the cap to the others, what is missing to the first", "[unit]") {
  using eviction::Counts;
  REQUIRE(eviction::share_by_preference({3, 1, 2, .5}, 400, 1000) == Counts{185, 62, 123, 30});
  REQUIRE(eviction::share_by_preference({3, 1, 2, .5}, 400, 150) == Counts{150, 74, 135, 41});
  REQUIRE(eviction::share_by_preference({1, 1, 1}, 9, 100) == Counts{3, 3, 3});
  REQUIRE(eviction::share_by_preference({0, 0}, 9, 100) == Counts{5, 4});
}

TEST_CASE("cake: layers are cut to their shares, which sum to the budget and hold at every step", "[unit]") {
  const MethodChoice m = parse_choice("cake:budget=24,observation_window=4,cascade=false");
  const Scenario s{.method = m.method, .shape = uniform_shape(4, 4, 2, 16, Dtype::f32), .row = m.row, .prompt = 80, .chunk = 80, .decode = 6, .seed = 5};
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  std::vector<Tokens> kept;
  std::int64_t total = 0;
  for (int l = 0; l < 4; ++l) {
    kept.push_back(cache->kept(l, 0));
    total += kept.back().value;
  }
  REQUIRE(total == 4 * 24);
  run_decode(*cache, s, 0, 6);
  for (int l = 0; l < 4; ++l) REQUIRE(cache->kept(l, 1) == kept[static_cast<std::size_t>(l)]);
}

TEST_CASE("cake: a prompt of budget and window stays whole, one more token brings the cut", "[unit]") {
  for (const std::int64_t prompt : {28, 29}) {
    const MethodChoice m = parse_choice("cake:budget=24,observation_window=4");
    const Scenario s{.method = m.method, .shape = uniform_shape(2, 2, 1, 16, Dtype::f32), .row = m.row, .prompt = prompt, .chunk = prompt, .decode = 0, .seed = 6};
    const auto cache = open_cache(s);
    run_prompt(*cache, s);
    const std::int64_t held = (cache->kept(0, 0) + cache->kept(1, 0)).value;
    CHECK((prompt == 28 ? held == 56 : held < 58));
  }
  CHECK(why_not(*parse_choice("cake:kernel=4").method, parse_choice("cake:kernel=4").row, uniform_shape(1, 1, 1, 8)) == "kernel is 4, must be odd");
}

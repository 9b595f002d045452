#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// A cache over tokens without direction (queries and keys 0): every query spreads its weight evenly.
struct Even {
  CacheShape shape = uniform_shape(1, 1, 1, 2, Dtype::f32);
  std::unique_ptr<KvCache> cache;
  explicit Even(const std::string& setting) {
    const MethodChoice c = parse_choice(setting);
    cache = c.method->open(c.row, shape, {});
  }
  void push(std::int64_t position, float value) {
    const Array q({1, 1, 2}), k({1, 1, 2});
    Array v({1, 1, 2}, value), out({1, 1, 2});
    const StepInput in{.q = q.view(), .k = k.view(), .v = v.view(), .positions = {&position, {1}}};
    cache->forward(0, in, out.view());
  }
  std::vector<float> values() const {
    const auto buffers = cache->buffers();
    const NamedBuffer& b = find_buffer(buffers, "layer0/v_rows/head0");
    std::vector<float> first;
    for (std::size_t at = 0; at < b.bytes.size(); at += 8) {
      float f = 0;
      std::memcpy(&f, b.bytes.data() + at, sizeof f);
      first.push_back(f);
    }
    return first;
  }
};

}  // namespace

TEST_CASE("WeightedKV blends the least attended value into its right neighbour by average attention", "[unit]") {
  // Three even tokens: masses 1 + 1/2 + 1/3, 1/2 + 1/3, 1/3 over 3, 2, 1 queries; averages .6111, .4167, .3333.
  Even last("weightedkv:budget=2,sinks=0,recent_window=0");
  for (int t = 0; t < 3; ++t) last.push(t, 10.0F * static_cast<float>(t));
  // The newest is lowest and has no right neighbour: it goes left, 10 + .3333/(.3333+.4167) * 10.
  REQUIRE(last.values().size() == 2);
  REQUIRE(last.values()[0] == 0.0F);
  REQUIRE(std::abs(last.values()[1] - 14.444444F) < 1e-5F);

  Even right("weightedkv:budget=2,sinks=0,recent_window=1");
  for (int t = 0; t < 3; ++t) right.push(t, 10.0F * static_cast<float>(t));
  // Token 1 (.4167) goes into token 2 (.3333): 20 + .4167/.75 * (10 - 20).
  REQUIRE(right.values()[0] == 0.0F);
  REQUIRE(std::abs(right.values()[1] - 14.444444F) < 1e-5F);

  Even sinks("weightedkv:budget=2,sinks=1,recent_window=1");
  for (int t = 0; t < 3; ++t) sinks.push(t, 10.0F * static_cast<float>(t));
  REQUIRE(sinks.values() == right.values());
}

TEST_CASE("the receiver's statistics stay in literal mode and take the mass over in mass mode", "[unit]") {
  for (const bool mass : {false, true}) {
    Even e(cat("weightedkv:budget=2,sinks=0,recent_window=1,receiver=", mass ? "mass" : "literal"));
    for (int t = 0; t < 3; ++t) e.push(t, 1.0F);
    const auto held = masses_held(*e.cache);
    REQUIRE(std::abs(held[0] - 1.833333F) < 1e-5F);
    REQUIRE(std::abs(held[1] - (mass ? 1.166667F : 0.333333F)) < 1e-5F);
  }
}

TEST_CASE("constant values stay constant and no value leaves the range of what was stored", "[unit]") {
  Even constant("weightedkv:budget=4,sinks=1,recent_window=1");
  for (int t = 0; t < 40; ++t) constant.push(t, 0.3F);
  REQUIRE(constant.values() == std::vector<float>(4, 0.3F));
  Even rising("weightedkv:budget=4,sinks=1,recent_window=1");
  for (int t = 0; t < 40; ++t) rising.push(t, static_cast<float>(t));
  const auto v = rising.values();
  REQUIRE(std::ranges::is_sorted(v));
  REQUIRE(v.front() == 0.0F);
  REQUIRE(v.back() <= 39.0F);
}

TEST_CASE("WeightedKV holds min(tokens, budget) inside the prompt and over 210 steps, in all group sizes", "[unit]") {
  for (const int group : {1, 4, 8}) {
    const Traced run = random_traced(group, 1, 260, 4, 8);
    const auto cache = run.open("weightedkv:budget=40,sinks=4,recent_window=10");
    for (std::int64_t t = 0; t < 50; t += 10) {
      run.run(*cache, t, 10);
      REQUIRE(cache->kept(0, 0) == Tokens(std::min<std::int64_t>(t + 10, 40)));
    }
    cache->end_prefill();
    for (std::int64_t t = 50; t < 260; ++t) {
      run.run(*cache, t, 1);
      REQUIRE(cache->kept(0, 0) == 40_tok);
    }
  }
}

TEST_CASE("a prompt gives the same bits in any chunks, and outputs leave full attention only when the budget is full", "[unit]") {
  const Traced run = random_traced(4, 2, 30, 8, 12);
  const std::string setting = "weightedkv:budget=12,sinks=2,recent_window=3";
  const auto whole = run.open(setting), chunks = run.open(setting), full = run.open("full");
  const Array out = run.run(*whole, 0, 30), dense = run.run(*full, 0, 30);
  for (std::int64_t t = 0; t < 30; ++t) {
    const Array one = run.run(*chunks, t, 1);
    for (int h = 0; h < 4; ++h) {
      REQUIRE(std::ranges::equal(one.view().row(h, 0), out.view().row(h, t)));
      // Token 12 still sees all thirteen; the first merge comes after it.
      if (t <= 12) REQUIRE(std::ranges::equal(out.view().row(h, t), dense.view().row(h, t)));
    }
  }
  REQUIRE(digest(whole->buffers()) == digest(chunks->buffers()));
  REQUIRE(!std::ranges::equal(out.view().row(0, 29), dense.view().row(0, 29)));
}

TEST_CASE("WeightedKV says why it cannot serve a setting or a mask, and takes nothing back", "[unit]") {
  const Traced run = random_traced(2, 1, 4, 8, 1);
  REQUIRE(why_not(find_method("weightedkv"), parse_choice("weightedkv:budget=100").row, run.shape()) ==
          "sinks + recent_window is 260, must be at most budget (100)");
  const auto cache = run.open("weightedkv");
  const std::vector<std::int64_t> positions{0, 1};
  Array out({2, 2, 8});
  REQUIRE_THROWS_WITH(cache->forward(0, {.q = run.q().slice(1, 0, 2), .k = run.k().slice(1, 0, 2), .v = run.k().slice(1, 0, 2),
                                         .positions = {positions.data(), {2}},
                                         .mask = {MaskKind::bidirectional, {}}},
                                     out.view()),
                      "weightedkv takes tokens one at a time: mask must be causal");
  REQUIRE(cache->kept(0, 0) == 0_tok);
  run.run(*cache, 0, 3);
  REQUIRE_THROWS_AS(cache->crop(2_tok), Unsupported);
}

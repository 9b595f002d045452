#include <algorithm>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/fixture_f1.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

std::vector<std::int64_t> snapkv_of_f1(const std::string& setting) {
  const Traced f1 = fixture_f1();
  const auto cache = f1.open("snapkv:observation_window=2," + setting);
  f1.run(*cache, 0, 6);
  cache->end_prefill();
  return tokens_held(*cache);
}

}  // namespace

TEST_CASE("SnapKV keeps the worked example's tokens under each pooling", "[unit]") {
  REQUIRE(snapkv_of_f1("budget=4,kernel=1") == std::vector<std::int64_t>{0, 2, 4, 5});
  REQUIRE(snapkv_of_f1("budget=4,kernel=3,pooling=avg") == std::vector<std::int64_t>{1, 2, 4, 5});
  REQUIRE(snapkv_of_f1("budget=4,kernel=3,pooling=max") == std::vector<std::int64_t>{1, 2, 4, 5});  // a tie of three
  REQUIRE(snapkv_of_f1("budget=2,kernel=3") == std::vector<std::int64_t>{4, 5});                    // the window alone
  REQUIRE(snapkv_of_f1("budget=6,kernel=3") == std::vector<std::int64_t>{0, 1, 2, 3, 4, 5});        // budget == prompt
  REQUIRE(snapkv_of_f1("budget=7,kernel=3") == std::vector<std::int64_t>{0, 1, 2, 3, 4, 5});
  // Each query head by itself: head 0 sums .363 .421 .593 .183, head 1 .451 .302 .472 .150.
  REQUIRE(snapkv_of_f1("budget=4,kernel=1,granularity=query_head") == std::vector<std::int64_t>{1, 2, 4, 5, 0, 2, 4, 5});
}

TEST_CASE("SnapKV keeps min(prompt, budget) and every generated token over 210 steps, in all group sizes", "[unit]") {
  for (const int group : {1, 4, 8}) {
    const Traced run = random_traced(group, 1, 270, 4, 9);
    for (const std::int64_t prompt : {20, 40, 60}) {
      const auto cache = run.open("snapkv:budget=40,observation_window=8,kernel=3");
      run.run(*cache, 0, prompt);
      cache->end_prefill();
      for (std::int64_t t = 0; t < 210; ++t) {
        run.run(*cache, prompt + t, 1);
        REQUIRE(cache->kept(0, 0) == Tokens(std::min<std::int64_t>(prompt, 40) + t + 1));
      }
      const auto kept = tokens_held(*cache);
      REQUIRE(std::ranges::is_sorted(kept));
      REQUIRE(std::ranges::adjacent_find(kept) == kept.end());
      for (std::int64_t t = prompt - 8; t < prompt + 210; ++t) REQUIRE(std::ranges::binary_search(kept, t));
    }
  }
}

TEST_CASE("SnapKV of permuted kv heads is SnapKV with its heads permuted", "[unit]") {
  const Traced run = random_traced(4, 2, 50, 8, 21);
  Array q({4, 50, 8}), k({2, 50, 8});
  for (std::int64_t t = 0; t < 50; ++t) {
    for (int h = 0; h < 4; ++h) std::ranges::copy(run.q().row((h + 2) % 4, t), q.view().row(h, t).begin());
    for (int h = 0; h < 2; ++h) std::ranges::copy(run.k().row(1 - h, t), k.view().row(h, t).begin());
  }
  const Traced swapped(q.view(), k.view());
  const std::string setting = "snapkv:budget=20,observation_window=4,kernel=5";
  const auto a = run.open(setting), b = swapped.open(setting);
  run.run(*a, 0, 50);
  swapped.run(*b, 0, 50);
  a->end_prefill();
  b->end_prefill();
  REQUIRE(tokens_held(*a, 0) == tokens_held(*b, 1));
  REQUIRE(tokens_held(*a, 1) == tokens_held(*b, 0));
  REQUIRE(tokens_held(*a, 0) != tokens_held(*a, 1));
}

TEST_CASE("SnapKV holds its window's queries until the prompt ends, and resumes a prompt that was saved inside", "[unit]") {
  const Traced run = random_traced(4, 2, 60, 8, 5);
  const std::string setting = "snapkv:budget=16,observation_window=4";
  const auto cache = run.open(setting);
  run.run(*cache, 0, 30);
  const auto saved = cache->buffers();
  REQUIRE(count_ledger(saved).of("window_queries", Side::both) == Bytes(4 * 4 * 8 * 4));
  const auto loaded = run.open(setting);
  loaded->load(saved);
  for (KvCache* c : {cache.get(), loaded.get()}) {
    run.run(*c, 30, 20);
    c->end_prefill();
  }
  REQUIRE(digest(cache->buffers()) == digest(loaded->buffers()));
  REQUIRE(count_ledger(cache->buffers()).of("window_queries", Side::both) == 0_B);
}

TEST_CASE("SnapKV takes back generated tokens, but none of the prompt", "[unit]") {
  const Traced run = random_traced(2, 1, 60, 8, 6);
  const auto cache = run.open("snapkv:budget=16,observation_window=4");
  run.run(*cache, 0, 3);
  cache->crop(2_tok);  // all queries are still in the window
  run.run(*cache, 2, 38);
  REQUIRE_THROWS_AS(cache->crop(39_tok), Unsupported);
  cache->end_prefill();
  const auto before = digest(cache->buffers());
  run.run(*cache, 40, 5);
  cache->crop(40_tok);
  REQUIRE(digest(cache->buffers()) == before);
  REQUIRE_THROWS_AS(cache->crop(39_tok), Unsupported);
}

TEST_CASE("SnapKV of query heads stores and counts q_heads rows", "[unit]") {
  const CacheShape shape = uniform_shape(2, 8, 2, 128);
  const auto bytes = [&](const char* setting) {
    const MethodChoice c = parse_choice(setting);
    return c.method->ledger_formula(c.row, shape, {.prompt = 4096_tok, .generated = 10_tok, .sequences = 3}, {}).total();
  };
  REQUIRE(bytes("snapkv") == Bytes(std::int64_t{1034} * 2 * 128 * 2 * 2 * 2 * 3));
  REQUIRE(bytes("snapkv:granularity=query_head").value == 4 * bytes("snapkv").value);
}

TEST_CASE("SnapKV says why it cannot serve a setting", "[unit]") {
  const Method& m = find_method("snapkv");
  CacheShape shape = uniform_shape(1, 2, 1, 8);
  REQUIRE(why_not(m, parse_choice("snapkv:kernel=4").row, shape) == "kernel is 4, must be odd");
  REQUIRE(why_not(m, parse_choice("snapkv:budget=16").row, shape) == "budget is 16, must be at least observation_window (32)");
  shape.classes[0].attention_sink = true;
  REQUIRE(why_not(m, defaults_of(m.params), shape) ==
          "learned sink logits: the scores of the window would need them after the prompt");
}

// The closed forms of an eviction rule against a count, step by step, and against what a cache of that rule holds.
#include "reference/primitives/eviction/rule.hpp"

#include "core/errors.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::eviction;
using namespace kvatlas::test;

namespace {

Rule rule_of(Trigger trigger, Tokens budget, Tokens interval, Tokens room) {
  return {.name = "probe", .scorer = key_norm(), .recent_window = 2_tok, .budget = budget, .trigger = trigger, .interval = interval, .room = room};
}

}  // namespace

TEST_CASE("kept rows follow the closed form under every trigger, and so does the ledger", "[unit]") {
  const Traced run = random_traced(2, 2, 120, 4, 3);
  Rule sparing = rule_of(Trigger::interval, 20_tok, 7_tok, 0_tok);
  sparing.spares_prompt = true;
  const Rule rules[] = {sparing, rule_of(Trigger::prompt_end, 20_tok, 1_tok, 0_tok), rule_of(Trigger::every_step, 20_tok, 1_tok, 0_tok),
                        rule_of(Trigger::interval, 20_tok, 7_tok, 0_tok), rule_of(Trigger::overflow, 20_tok, 1_tok, 5_tok),
                        rule_of(Trigger::overflow, 20_tok, 1_tok, 0_tok)};
  for (const Rule& rule : rules)
    for (const std::int64_t prompt : {3, 19, 20, 21, 60}) {
      CAPTURE(static_cast<int>(rule.trigger), prompt);
      const auto cache = open(rule, run.shape());
      run.run(*cache, 0, prompt);
      cache->end_prefill();
      std::int64_t most = 0;
      for (std::int64_t t = 0; t < 55; ++t) {
        const History h{.prompt = Tokens(prompt), .generated = Tokens(t)};
        const Ledger formula = ledger_formula(rule, run.shape(), h, {});
        const std::int64_t rows = cache->kept(0, 1).value;
        REQUIRE(kept_rows(rule, {}, h) == rows);
        REQUIRE(count_ledger(cache->buffers()).total() == formula.total());
        most = std::max(most, formula.total().value);
        REQUIRE(formula.high_water().value == most);
        run.run(*cache, prompt + t, 1);
        REQUIRE(attended_rows(rule, {}, {.prompt = Tokens(prompt), .generated = Tokens(t + 1)}) == rows + 1);
      }
    }
}

TEST_CASE("an interval's clock is saved, and a wrong one is refused", "[unit]") {
  const Traced run = random_traced(2, 1, 60, 4, 5);
  const Rule rule = rule_of(Trigger::interval, 10_tok, 6_tok, 0_tok);
  const auto cache = open(rule, run.shape());
  run.run(*cache, 0, 20);
  cache->end_prefill();
  for (std::int64_t t = 20; t < 24; ++t) run.run(*cache, t, 1);
  auto saved = cache->buffers();
  const auto loaded = open(rule, run.shape());
  loaded->load(saved);
  for (std::int64_t t = 24; t < 30; ++t)
    for (KvCache* c : {cache.get(), loaded.get()}) run.run(*c, t, 1);
  REQUIRE(cache->kept(0, 0) == 14_tok);
  REQUIRE(digest(cache->buffers()) == digest(loaded->buffers()));
  for (NamedBuffer& b : saved)
    if (b.component == "clock") b.bytes[0] = std::byte{6};
  REQUIRE_THROWS_WITH(loaded->load(saved), contains_text("does not hold a number of steps below 6"));
}

TEST_CASE("a rule says why its budget cannot be", "[unit]") {
  const CacheShape shape = uniform_shape(1, 2, 1, 8);
  REQUIRE(why_not(rule_of(Trigger::every_step, 1_tok, 1_tok, 0_tok), shape) ==
          "budget is 1, must be at least the tokens that always stay (2)");
  REQUIRE(why_not(rule_of(Trigger::overflow, 6_tok, 1_tok, 5_tok), shape) ==
          "budget less the tokens that leave at once is 1, must be at least the tokens that always stay (2)");
}

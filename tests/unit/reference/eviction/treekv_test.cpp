#include <algorithm>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/eviction/treekv/cycle.hpp"
#include "tests/catch.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

using Kept = std::vector<std::int64_t>;

/// Entries 1, 2, ... n through a cycle, as they are counted in the worked example.
Kept through(std::int64_t n, std::int64_t capacity, double odd, double even) {
  std::vector<double> scores;
  for (std::int64_t i = 1; i <= n; ++i) scores.push_back(i % 2 == 1 ? odd : even);
  Kept kept = methods::treekv_parts::survivors(scores, capacity);
  for (std::int64_t& k : kept) ++k;
  return kept;
}

/// One head; the query of token t tree_looks at token of[t] with nearly all of its weight; -1: at itself.
Traced tree_looks(const std::vector<int>& of) {
  const auto n = static_cast<std::int64_t>(of.size());
  Array q({1, n, n}), k({1, n, n});
  for (std::int64_t t = 0; t < n; ++t) {
    k.view()(0, t, t) = 1;
    const int at = of[static_cast<std::size_t>(t)];
    q.view()(0, t, at < 0 ? t : at) = 100;
  }
  return Traced(q.view(), k.view());
}

}  // namespace

TEST_CASE("treekv: the worked examples of the cycle", "[unit]") {
  CHECK(through(12, 4, 1, 1) == Kept{4, 8, 10, 12});
  CHECK(through(12, 4, 2, 1) == Kept{3, 7, 9, 11});
  CHECK(through(64, 8, 1, 1) == Kept{40, 48, 52, 56, 58, 60, 62, 64});
  CHECK(through(256, 8, 1, 1) == Kept{232, 240, 244, 248, 250, 252, 254, 256});
  CHECK(through(3, 4, 1, 1) == Kept{1, 2, 3});
  CHECK(through(3, 0, 1, 1).empty());
  // Which ones leave, in order: 1, 3, 5, 7, 2, 6, 9, 11; the cycle is back at its start.
  methods::treekv_parts::Cycle cycle{.capacity = 4};
  Kept held, left;
  for (std::int64_t i = 1; i <= 12; ++i) {
    held.push_back(i);
    if (held.size() <= 4) continue;
    const std::int64_t at = cycle.leaves([](std::int64_t) { return 1.0; });
    left.push_back(held[static_cast<std::size_t>(at)]);
    held.erase(held.begin() + at);
    cycle.advance();
  }
  CHECK(left == Kept{1, 3, 5, 7, 2, 6, 9, 11});
  CHECK(cycle.at == 1);
}

TEST_CASE("treekv: a decode step that overfills the tree drops the weaker of two neighbours", "[unit]") {
  // One sink, a tree of three, a window of one; the prompt of five fills it. Its last block, query 4, tree_looks at token 2.
  const Traced run = tree_looks({-1, -1, -1, -1, 2, -1, 3, -1, -1, -1});
  const auto cache = run.open("treekv:sinks=1,tree=3,recent_window=1,block=1,positions=true");
  run.run(*cache, 0, 5);
  cache->end_prefill();
  CHECK(tokens_held(*cache) == Kept{0, 1, 2, 3, 4});
  run.run(*cache, 5, 1);  // tree 1 2 3 4: of 1 and 2 the first, without attention, leaves
  CHECK(tokens_held(*cache) == Kept{0, 2, 3, 4, 5});
  run.run(*cache, 6, 1);  // tree 2 3 4 5; 3 (the query of 6 tree_looks at it) and 4 are compared
  CHECK(tokens_held(*cache) == Kept{0, 2, 3, 5, 6});
  run.run(*cache, 7, 1);  // tree 2 3 5 6: one of three queries looked at 5, none at 6
  CHECK(tokens_held(*cache) == Kept{0, 2, 3, 5, 7});
  run.run(*cache, 8, 1);  // from the start: 2 (one of five queries) against 3 (one of five): the older
  CHECK(tokens_held(*cache) == Kept{0, 3, 5, 7, 8});
}

TEST_CASE("treekv: of a prompt whole blocks stay, and the tokens that fill none", "[unit]") {
  // 14 tokens, one sink, a window of three: ten between them, blocks 1-3, 4-6, 7-9 and the rest, 10; (8 - 1) / 3 = 2 blocks can stay.
  // The last block's queries (11, 12, 13) look at token 5, 5 and 8: blocks weigh 0, 2, 1; the first two are compared.
  const std::vector<int> of{-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 5, 5, 8, -1};
  const Traced run = tree_looks(of);
  const auto cache = run.open("treekv:sinks=1,tree=8,recent_window=3,block=3,positions=true");
  run.run(*cache, 0, 14);
  cache->end_prefill();
  CHECK(tokens_held(*cache) == Kept{0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13});
  run.run(*cache, 14, 1);  // room for twelve
  CHECK(cache->kept(0, 0) == 12_tok);
}

TEST_CASE("treekv: keys are turned by their slots, so that a far text tree_looks near", "[unit]") {
  // The same tokens with a rotation: outputs equal those at true positions until the first eviction, and differ after it.
  const RopeSpec rope{.base = 10000.0, .rotary_dim = 8};
  const CacheShape shape = uniform_shape(1, 2, 1, 8, Dtype::f32, rope);
  const Traced run = random_traced(2, 1, 12, 8, 9);
  const MethodChoice slot = parse_choice("treekv:sinks=1,tree=4,recent_window=2,block=1"), text = parse_choice("treekv:sinks=1,tree=4,recent_window=2,block=1,positions=true");
  const auto a = slot.method->open(slot.row, shape, {}), b = text.method->open(text.row, shape, {});
  CHECK(run.run(*a, 0, 7).values() == run.run(*b, 0, 7).values());
  a->end_prefill();
  b->end_prefill();
  CHECK(run.run(*a, 7, 1).values() == run.run(*b, 7, 1).values());
  CHECK(run.run(*a, 8, 1).values() != run.run(*b, 8, 1).values());
}

TEST_CASE("treekv: refusals; a sixteenth of 16K tokens", "[unit]") {
  const MethodChoice m = parse_choice("treekv:block=64,tree=32");
  CHECK(why_not(*m.method, m.row, uniform_shape(1, 1, 1, 8)) == "block is 64, must be at most tree (32) and recent_window (508)");
#ifndef KVATLAS_POISON_FORMULAS
  const MethodChoice plain = parse_choice("treekv");
  const Ledger ledger = formula_ledger(*plain.method, plain.row, uniform_shape(1, 1, 1, 64, Dtype::bf16), {.prompt = Tokens(16384), .generated = Tokens(1000)});
  CHECK(ledger.of("rows", Side::key).value == 1024 * 64 * 2);
  CHECK(ledger.of("mass", Side::both).value + ledger.of("queries", Side::both).value == 1024 * 12);
  CHECK(ledger.of("cursor", Side::both).value == 4);
#endif
}

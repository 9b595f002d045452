#include <algorithm>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/eviction/mpcache/clusters.hpp"
#include "tests/catch.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

namespace parts = methods::mpcache_parts;
using Kept = std::vector<std::int64_t>;

Kept runs_of(std::initializer_list<std::pair<std::int64_t, std::int64_t>> of) {
  Kept rows;
  for (const auto& [first, end] : of)
    for (std::int64_t t = first; t < end; ++t) rows.push_back(t);
  return rows;
}

/// Rows chosen when coarse clusters and halves have these similarities.
Kept clusters_chosen(const parts::Choice& how, std::int64_t rows, const std::vector<float>& coarse, const std::vector<float>& fine) {
  return parts::chosen_rows(how, rows, [&](std::int64_t size, std::int64_t index) { return (size == how.cluster ? coarse : fine).at(static_cast<std::size_t>(index)); });
}

}  // namespace

TEST_CASE("mpcache: the linear similarity of a cluster, the worked example", "[unit]") {
  Array keys({2, 2});
  keys.values() = {3, .5F, -1, 1};
  const std::vector<float> pair = parts::bounds(keys.view(), 0, 2);
  CHECK(pair == std::vector<float>{3, 1, -1, .5F});
  const std::vector<float> q{1, -2};
  CHECK(static_cast<double>(parts::similarity(q, pair, .6)) == Approx(-.2));
}

TEST_CASE("mpcache: coarse clusters, then halves; first and open last ones always", "[unit]") {
  // 70 rows: three coarse clusters, the last open, five halves. Half of three is one coarse cluster, a fifth of five one half.
  CHECK(clusters_chosen({}, 70, {0, 5, 1}, {0, 1, 2, 9, 3}) == runs_of({{0, 16}, {48, 64}, {64, 70}}));
  CHECK(clusters_chosen({}, 70, {5, 0, 1}, {0, 1, 2, 9, 3}) == runs_of({{0, 16}, {64, 70}}));  // the best half is not in a chosen cluster; of the others the open one
  // The released padding: ten slots are missing behind row 69, and the ten newest rows come instead.
  CHECK(clusters_chosen({.shifts_padding = true}, 70, {5, 0, 1}, {0, 4, 2, 9, 3}) == runs_of({{0, 16}, {16, 32}, {60, 70}}));
  // 96 rows, nothing is open: of six halves three, but only four are in chosen clusters.
  CHECK(clusters_chosen({.coarse_keep = .34, .fine_keep = .5}, 96, {0, 1, 5}, {0, 2, 99, 99, 3, 1}) == runs_of({{0, 32}, {64, 96}}));
  CHECK(clusters_chosen({.coarse_keep = 1, .fine_keep = 1}, 96, {0, 1, 5}, {0, 2, 9, 9, 3, 1}) == runs_of({{0, 96}}));
  CHECK(clusters_chosen({}, 3, {0}, {0}) == Kept{0, 1, 2});
}

TEST_CASE("mpcache: the tail scores without scale and mask; the largest mean over heads", "[unit]") {
  // Logits 0 and ln 3 in both heads, or equal ones in the second: weights 1/4, 3/4 and 1/2, 1/2.
  Array q({2, 2, 4}), k({2, 4});
  k.view()(1, 0) = 1.0986123F;
  q.view()(0, 0, 0) = q.view()(0, 1, 0) = q.view()(1, 1, 0) = 1;
  const auto scores = parts::tail_scores(uniform_shape(1, 2, 1, 4).classes.front(), q.view(), {k});
  CHECK(static_cast<double>(scores[0]) == Approx(.375));  // of .375 and .25
  CHECK(static_cast<double>(scores[1]) == Approx(.75));
}

TEST_CASE("mpcache: all heads keep one choice, by share or by threshold; steps can be taken back", "[unit]") {
  const Traced run = random_traced(4, 2, 60, 16, 11);
  const auto cache = run.open("mpcache:keep_fraction=0.5,cluster=4");
  run.run(*cache, 0, 41);
  cache->end_prefill();
  CHECK(cache->kept(0, 0) == 20_tok);
  const Kept first = tokens_held(*cache, 0);
  CHECK(tokens_held(*cache, 1) == first);
  const Array before = run.run(*cache, 41, 1);
  for (std::int64_t t = 42; t < 50; ++t) run.run(*cache, t, 1);
  cache->crop(41_tok);
  CHECK(run.run(*cache, 41, 1).values() == before.values());
  const auto none = run.open("mpcache:threshold=1,cluster=4"), all = run.open("mpcache:threshold=1e-30,cluster=4");
  for (KvCache* c : {none.get(), all.get()}) {
    run.run(*c, 0, 41);
    c->end_prefill();
  }
  CHECK(none->kept(0, 0) == 1_tok);  // the best, if none reaches the threshold
  CHECK(all->kept(0, 0) == 41_tok);
}

TEST_CASE("mpcache: refusals; spoiled bounds; bytes", "[unit]") {
  const MethodChoice odd = parse_choice("mpcache:cluster=5"), m = parse_choice("mpcache");
  CHECK(why_not(*odd.method, odd.row, uniform_shape(1, 1, 1, 8)) == "cluster is 5, must be even");
  const Traced run = random_traced(1, 1, 40, 8, 2);
  const auto cache = run.open("mpcache:keep_fraction=1,cluster=8");
  run.run(*cache, 0, 20);
  cache->end_prefill();
  auto saved = cache->buffers();
  for (NamedBuffer& b : saved)
    if (b.name == "layer0/fine/head0") b.bytes[1] ^= std::byte{1};
  CHECK_THROWS_WITH(run.open("mpcache:keep_fraction=1,cluster=8")->load(saved), "buffer layer0/fine/head0 does not hold the bounds of its keys");
#ifndef KVATLAS_POISON_FORMULAS
  const Ledger ledger = formula_ledger(*m.method, m.row, uniform_shape(2, 4, 2, 64, Dtype::bf16), {.prompt = 1000_tok, .generated = 20_tok});
  CHECK(ledger.of("rows", Side::key).value == 2 * 2 * 320 * 128);
  CHECK(ledger.of("summaries", Side::key).value == 2 * 2 * (10 + 20) * 2 * 128);
  CHECK(ledger.prefill().value == 2 * (2 * 1000 * 256 + 4 * 200 * 128));
#endif
}

#include <algorithm>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/eviction/kvzip/scores.hpp"
#include "tests/catch.hpp"
#include "tests/support/fixture_f1.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

using Kept = std::vector<std::int64_t>;
constexpr int kUnitDim = 8;

/// Rows [heads, n, 8] that are `scale` times a unit vector each; -1: zeros.
Array unit_rows(const std::vector<std::vector<int>>& of, float scale = 1) {
  const auto heads = static_cast<std::int64_t>(of.size()), n = static_cast<std::int64_t>(of.front().size());
  Array rows({heads, n, kUnitDim});
  for (std::int64_t h = 0; h < heads; ++h)
    for (std::int64_t i = 0; i < n; ++i)
      if (const int at = of[static_cast<std::size_t>(h)][static_cast<std::size_t>(i)]; at >= 0) rows.view()(h, i, at) = scale;
  return rows;
}

/// One step of both heads; values number the tokens. A repetition comes under a tree mask, in which a token sees itself and earlier ones.
void feed_kvzip(KvCache& cache, const Array& q, const Array& k, std::int64_t first, bool repetition) {
  const std::int64_t n = q.dims()[1];
  Array v({2, n, kUnitDim}), out({2, n, kUnitDim});
  std::vector<std::int64_t> positions;
  std::vector<std::uint8_t> tree(static_cast<std::size_t>(n * n), 0);
  for (std::int64_t i = 0; i < n; ++i) {
    positions.push_back(first + i);
    for (int h = 0; h < 2; ++h) v.view()(h, i, 0) = static_cast<float>(first + i);
    for (std::int64_t j = 0; j <= i; ++j) tree[static_cast<std::size_t>(i * n + j)] = 1;
  }
  AttentionMask mask{};
  if (repetition) mask = {.kind = MaskKind::tree, .tree = {tree.data(), {n, n}}};
  cache.forward(0, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {positions.data(), {n}}, .mask = mask}, out.view());
}

std::unique_ptr<KvCache> open_kvzip(const std::string& setting) {
  const MethodChoice m = parse_choice(setting);
  return m.method->open(m.row, uniform_shape(1, 2, 2, kUnitDim, Dtype::f32), {});
}

const std::vector<std::vector<int>> kSixTokens{{0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}};

/// Six tokens with keys at right angles, one sink, pieces 1-3 and 4-5. The first repetition looks at token 2 in head 0 and nowhere in head 1,
/// where the sink, three tokens and itself share its weight; the second nowhere in head 0 (a quarter each) and at token 5 in head 1.
std::unique_ptr<KvCache> repeated_kvzip(const std::string& setting) {
  auto cache = open_kvzip("kvzip:sinks=1,chunk=3,second_pass=caller," + setting);
  feed_kvzip(*cache, unit_rows(kSixTokens), unit_rows(kSixTokens), 0, false);
  feed_kvzip(*cache, unit_rows({{2}, {-1}}, 200), unit_rows({{7}, {7}}), 6, true);
  feed_kvzip(*cache, unit_rows({{-1}, {5}}, 200), unit_rows({{7}, {7}}), 6, true);
  return cache;
}

Kept kvzip_keeps(const std::string& setting, int head) {
  const auto cache = repeated_kvzip(setting);
  cache->end_prefill();
  return tokens_held(*cache, head);
}

}  // namespace

TEST_CASE("kvzip: a token's score is the largest weight of any query and head, as in the shared fixture", "[unit]") {
  // The repetition is the fixture's last two tokens; they see the first four, and themselves in order.
  const Traced f1 = fixture_f1();
  const auto scores = methods::kvzip_parts::recall_scores(f1.shape().classes.front(), 0, f1.q().slice(1, 4, 2), f1.k()[0].slice(0, 4, 2), f1.k()[0].slice(0, 0, 4),
                                                          {.sinks = 0, .first = 0, .end = 4}, {});
  const std::vector<double> expected{.287988, .254360, .338480, .125417};
  for (std::size_t t = 0; t < 4; ++t) CHECK(static_cast<double>(scores[t]) == Approx(expected[t]).margin(2e-6));
}

TEST_CASE("kvzip: pairs of head and token compete for the share; the worked example", "[unit]") {
  // Head 0: tokens 1-5 score 0, 1, 0, 1/4, 1/4; head 1: 1/5, 1/5, 1/5, 0, 1. Of ten pairs four stay.
  CHECK(kvzip_keeps("keep_fraction=0.4", 0) == Kept{0, 2, 4, 5});
  CHECK(kvzip_keeps("keep_fraction=0.4", 1) == Kept{0, 5});
  CHECK(kvzip_keeps("keep_fraction=0.5", 1) == Kept{0, 1, 5});  // of three equal scores the lowest
  CHECK(kvzip_keeps("keep_fraction=0.4,selection=layer", 0) == Kept{0, 2, 4, 5});
  CHECK(kvzip_keeps("keep_fraction=0.4,selection=head", 0) == Kept{0, 2, 4});
  CHECK(kvzip_keeps("keep_fraction=0.4,selection=head", 1) == Kept{0, 1, 5});
  // Released: the fourth best scores 1/4, and pairs must lie above it.
  CHECK(kvzip_keeps("keep_fraction=0.4,selection=released", 0) == Kept{0, 2});
  CHECK(kvzip_keeps("keep_fraction=0.4,selection=released", 1) == Kept{0, 5});
  CHECK(kvzip_keeps("keep_fraction=1,selection=released", 1) == Kept{0, 1, 2, 3, 4, 5});
  CHECK(kvzip_keeps("keep_fraction=0", 0) == Kept{0});
}

TEST_CASE("kvzip: a repetition leaves nothing but scores, and can be interrupted", "[unit]") {
  const auto cache = repeated_kvzip("keep_fraction=0.4");
  CHECK(cache->kept(0, 0) == 6_tok);
  const auto half = open_kvzip("kvzip:sinks=1,chunk=3,second_pass=caller,keep_fraction=0.4"), rest = open_kvzip("kvzip:sinks=1,chunk=3,second_pass=caller,keep_fraction=0.4");
  feed_kvzip(*half, unit_rows(kSixTokens), unit_rows(kSixTokens), 0, false);
  feed_kvzip(*half, unit_rows({{2}, {-1}}, 200), unit_rows({{7}, {7}}), 6, true);
  rest->load(half->buffers());
  feed_kvzip(*rest, unit_rows({{-1}, {5}}, 200), unit_rows({{7}, {7}}), 6, true);
  for (KvCache* c : {cache.get(), rest.get()}) {
    c->end_prefill();
    CHECK(tokens_held(*c, 0) == Kept{0, 2, 4, 5});
    feed_kvzip(*c, unit_rows({{1}, {1}}), unit_rows({{6}, {6}}), 6, false);
    feed_kvzip(*c, unit_rows({{1}, {1}}), unit_rows({{7}, {7}}), 7, false);
    CHECK(tokens_held(*c, 1) == Kept{0, 5, 6, 7});
    c->crop(7_tok);  // the text has eight tokens, however often it was repeated
    CHECK(tokens_held(*c, 1) == Kept{0, 5, 6});
  }
}

TEST_CASE("kvzip: where no rotation tells them apart the stand-in equals a repetition with the prompt's own queries", "[unit]") {
  const Traced run = random_traced(4, 2, 20, 16, 5);
  const auto own = run.open("kvzip:keep_fraction=0.5,sinks=2,chunk=8"), given = run.open("kvzip:keep_fraction=0.5,sinks=2,chunk=8,second_pass=caller");
  for (KvCache* c : {own.get(), given.get()}) run.run(*c, 0, 20);
  for (std::int64_t first = 2; first < 20; first += 8) {
    const std::int64_t n = std::min<std::int64_t>(8, 20 - first);
    Array v({2, n, 16}), out({4, n, 16});
    std::vector<std::int64_t> positions;
    std::vector<std::uint8_t> tree;
    for (std::int64_t i = 0; i < n; ++i) {
      positions.push_back(20 + i);
      for (std::int64_t j = 0; j < n; ++j) tree.push_back(j <= i ? 1 : 0);
    }
    given->forward(0, {.q = run.q().slice(1, first, n), .k = run.k().slice(1, first, n), .v = v.view(), .positions = {positions.data(), {n}},
                       .mask = {.kind = MaskKind::tree, .tree = {tree.data(), {n, n}}}}, out.view());
  }
  own->end_prefill();
  given->end_prefill();
  CHECK(tokens_held(*own) == tokens_held(*given));
  CHECK(own->kept(0, 0).value + own->kept(0, 1).value == 2 * 2 + 18);
}

TEST_CASE("kvzip: what the caller does not repeat scores 0; refusals", "[unit]") {
  const auto cache = open_kvzip("kvzip:sinks=1,chunk=3,second_pass=caller,keep_fraction=0.4");
  feed_kvzip(*cache, unit_rows(kSixTokens), unit_rows(kSixTokens), 0, false);
  feed_kvzip(*cache, unit_rows({{-1}, {1}}, 200), unit_rows({{7}, {7}}), 6, true);
  CHECK_THROWS_WITH(feed_kvzip(*cache, unit_rows({{0}, {0}}), unit_rows({{0}, {0}}), 6, false),
                    "kvzip: the prompt cannot go on once its repetition has begun; mask must be tree until it ends");
  cache->end_prefill();
  CHECK(tokens_held(*cache, 0) == Kept{0, 1, 2, 3});
  CHECK(tokens_held(*cache, 1) == Kept{0, 1});
  const auto done = repeated_kvzip("keep_fraction=0.4");
  CHECK_THROWS_WITH(feed_kvzip(*done, unit_rows({{0}, {0}}), unit_rows({{7}, {7}}), 6, true), "kvzip: the prompt has 2 pieces, and all of them have been repeated");
  CHECK_THROWS_AS(done->crop(5_tok), Unsupported);
  const auto held = open_kvzip("kvzip");
  CHECK_THROWS_WITH(feed_kvzip(*held, unit_rows(kSixTokens), unit_rows(kSixTokens), 3, false),
                    "kvzip moves queries to the positions of a repetition: those of the prompt must be 0, 1, 2, ... (second_pass=caller takes any)");
  CacheShape sinks = uniform_shape(1, 2, 2, kUnitDim);
  sinks.classes.front().attention_sink = true;
  const MethodChoice m = parse_choice("kvzip");
  CHECK(why_not(*m.method, m.row, sinks) == "learned sink logits: the scores of a repetition would need them after the prompt");
}

#ifndef KVATLAS_POISON_FORMULAS
TEST_CASE("kvzip: the plan repeats the prompt piece by piece over the whole cache; bytes are exact", "[unit]") {
  const MethodChoice m = parse_choice("kvzip:second_pass=caller");
  const CacheShape shape = uniform_shape(2, 8, 2, 64, Dtype::bf16);
  const History h{.prompt = Tokens(5000)};  // 4996 behind the sinks: two pieces of 2048 and one of 900
  const Plan plan = m.method->prefill_plan(m.row, shape, h, {});
  double prefills = 0, flops = 0, scored = 0;
  for (const KernelCall& call : plan.calls()) {
    if (call.kernel == KernelId::prefill_attention) prefills += call.launches;
    if (call.kernel == KernelId::prefill_attention) flops += call.launches * call.operations.tensor_flops;
    if (call.kernel == KernelId::window_score) scored += call.launches;
  }
  CHECK(prefills == 2 * (1 + 3));
  CHECK(scored == 2 * 3);
  const auto pairs = [](double past, double n) { return n * past + n * (n + 1) / 2; };
  CHECK(flops == 2 * 8 * 2.0 * 128 * (pairs(0, 5000) + 2 * pairs(5000, 2048 + 24) + pairs(5000, 900 + 24)));
  const Ledger ledger = formula_ledger(*m.method, m.row, shape, h);
  // 2 layers x 2 heads x 4996 pairs, three tenths of them, and 4 x 4 of the sinks.
  CHECK(ledger.of("rows", Side::key).value == (5995 + 16) * 64 * 2);
  CHECK(ledger.of("lengths", Side::both).value == 2 * 3 * 4);
  CHECK(ledger.prefill().value == 5000 * 4 * (2 * 64 * 2 + 4));
}
#endif

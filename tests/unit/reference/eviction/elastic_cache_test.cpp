#include <cstring>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// Query t looks at one token with nearly all of its weight. Of ten prompt tokens 0 and 9 are ends; between them the attention is
/// 3 (token 1), 0, 2 (token 3), 0, 1 (token 5), 0, 0, 2 (token 8) queries.
Traced looks() {
  const std::vector<int> of{0, 1, 1, 1, 3, 3, 5, 0, 8, 8, 10, 11, 12, 13, 14, 15};
  const auto n = static_cast<std::int64_t>(of.size());
  Array q({1, n, n}), k({1, n, n});
  for (std::int64_t t = 0; t < n; ++t) {
    k.view()(0, t, t) = 1;
    q.view()(0, t, of[static_cast<std::size_t>(t)]) = 100;
  }
  return Traced(q.view(), k.view());
}

/// First channel of the values that are held: the number of a token, or the mean of several.
std::vector<float> values_held(const KvCache& cache) {
  std::vector<float> out;
  const auto buffers = cache.buffers();
  const auto& bytes = find_buffer(buffers, "layer0/v_rows/head0").bytes;
  for (std::size_t at = 0; at < bytes.size(); at += 16 * sizeof(float)) {
    out.push_back(0);
    std::memcpy(&out.back(), bytes.data() + at, sizeof(float));
  }
  return out;
}

std::vector<float> after_steps(const std::string& setting, int steps) {
  const Traced run = looks();
  const auto cache = run.open(setting);
  run.run(*cache, 0, 10);
  cache->end_prefill();
  for (std::int64_t t = 10; t < 10 + steps; ++t) run.run(*cache, t, 1);
  return values_held(*cache);
}

using Values = std::vector<float>;

}  // namespace

TEST_CASE("elastic_cache: tokens are averaged into the nearest anchor, the lower of two", "[unit]") {
  // 4 of 10 leave: 2, 4, 6, 7 (no attention). Anchors 1, 3, 5, 8: 2 goes to 1, 4 to 3, 6 to 5, 7 to 8.
  CHECK(after_steps("elastic_cache:ratio=0.4", 0) == Values{0, 1.5F, 3.5F, 5.5F, 7.5F, 9});
  // 6 leave: anchors 1 and 3; 2 to 1; 4, 5, 6, 7, 8 to 3.
  CHECK(after_steps("elastic_cache:ratio=0.6", 0) == Values{0, 1.5F, 5.5F, 9});
  // Keys as well: the anchor 1 is the mean of two unit vectors.
  const Traced run = looks();
  const auto cache = run.open("elastic_cache:ratio=0.4");
  run.run(*cache, 0, 10);
  cache->end_prefill();
  const auto buffers = cache->buffers();
  std::vector<float> key(16);
  std::memcpy(key.data(), find_buffer(buffers, "layer0/k_rows/head0").bytes.data() + 16 * sizeof(float), 16 * sizeof(float));
  Values expected(16, 0.0F);
  expected[1] = expected[2] = 0.5F;
  CHECK(key == expected);
}

TEST_CASE("elastic_cache: nothing is averaged where no anchor is left, nor where nothing leaves", "[unit]") {
  CHECK(after_steps("elastic_cache:ratio=0.9", 0) == Values{0, 9});  // 9 would leave, 8 can
  CHECK(after_steps("elastic_cache:ratio=0", 2) == Values{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  CHECK(after_steps("elastic_cache:ratio=0.05", 0).size() == 10);  // half a token
}

TEST_CASE("elastic_cache: generated tokens push rows out of a fixed slot and are never averaged", "[unit]") {
  // 6 rows; slot 6 - 2 = 4 holds 7.5. 0.6 of 11 allows seven, of 12 eight (7.2), of 13 eight.
  CHECK(after_steps("elastic_cache:ratio=0.4,distance=-2", 2) == Values{0, 1.5F, 3.5F, 5.5F, 7.5F, 9, 10, 11});
  CHECK(after_steps("elastic_cache:ratio=0.4,distance=-2", 3) == Values{0, 1.5F, 3.5F, 5.5F, 9, 10, 11, 12});
  CHECK(after_steps("elastic_cache:ratio=0.4,distance=-2", 4) == Values{0, 1.5F, 3.5F, 5.5F, 9, 10, 11, 12, 13});
}

TEST_CASE("elastic_cache: the released choice takes slot numbers for ranks, keeps one less and merges tokens one slot too early", "[unit]") {
  // Candidates 1 .. 8 have attention 3 0 2 0 1 0 0 2; ascending, as slots from 0: 1 3 5 6 4 2 7 0. Where that is above 4 (4 leave, and one
  // more), at 2, 3 and 6, tokens 3, 4 and 7 stay. Tokens 1, 2, 5, 6, 8 leave, and 0, 1, 4, 5, 7 are merged: 0, 1 into 3; 4 and 5 into 4; 7 into 7.
  CHECK(after_steps("elastic_cache:ratio=0.4,selection=released", 0) == Values{0, 4.0F / 3, 13.0F / 3, 7, 9});
}

TEST_CASE("elastic_cache: refusals; a fifth less than all tokens by formula", "[unit]") {
  const MethodChoice m = parse_choice("elastic_cache:distance=0");
  CHECK(why_not(*m.method, m.row, uniform_shape(1, 1, 1, 8)) == "distance is 0, must be below 0 (from the end) or above 0 (from the start)");
#ifndef KVATLAS_POISON_FORMULAS
  const MethodChoice plain = parse_choice("elastic_cache:ratio=0.25");
  const Ledger ledger = formula_ledger(*plain.method, plain.row, uniform_shape(2, 4, 2, 8, Dtype::bf16), {.prompt = Tokens(100), .generated = Tokens(20)});
  CHECK(ledger.of("rows", Side::key).value == 2 * 2 * 90 * 8 * 2);
  CHECK(ledger.of("share", Side::both).value == 2 * 12);
#endif
}

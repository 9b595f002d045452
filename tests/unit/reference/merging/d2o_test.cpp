#include <cstring>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/merging/d2o/parts.hpp"
#include "tests/catch.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;
using namespace kvatlas::methods::d2o_parts;

namespace {

/// Twelve tokens of one head with keys at right angles, but for token 2 (cosine 0.6 with token 5) and token 3 (0.8 with token 8). Queries from 5 on
/// look at token 5, earlier ones at themselves.
Traced looks() {
  Array q({1, 12, 16}), k({1, 12, 16});
  for (std::int64_t t = 0; t < 12; ++t) {
    k.view()(0, t, t) = 1;
    q.view()(0, t, t < 5 ? t : 5) = 100;
  }
  k.view()(0, 2, 2) = .8F;
  k.view()(0, 2, 5) = .6F;
  k.view()(0, 3, 3) = .6F;
  k.view()(0, 3, 8) = .8F;
  return Traced(q.view(), k.view());
}

std::vector<float> floats_of(const KvCache& cache, const std::string& name) {
  const auto buffers = cache.buffers();
  const auto& bytes = find_buffer(buffers, name).bytes;
  std::vector<float> out(bytes.size() / sizeof(float));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

/// First channel of the rows that are held: of values the number of a token, or a blend.
std::vector<float> values_held(const KvCache& cache) {
  std::vector<float> out;
  const auto all = floats_of(cache, "layer0/v_rows/head0");
  for (std::size_t at = 0; at < all.size(); at += 16) out.push_back(all[at]);
  return out;
}

void check_near(const std::vector<float>& ours, const std::vector<double>& expected) {
  REQUIRE(ours.size() == expected.size());
  for (std::size_t i = 0; i < ours.size(); ++i) CHECK(static_cast<double>(ours[i]) == Approx(expected[i]).margin(1e-6));
}

const std::string kSetting = "d2o:heavy_hitters=0.2,recent=0.2,sinks=1,allocation=uniform,edge_layers=false";

}  // namespace

TEST_CASE("d2o: what leaves is merged into the most similar row that stays, if it is similar enough", "[unit]") {
  // Nine tokens; with the first step ten, of which two heavy hitters (the sink and token 5) and the two newest stay. Of the six that leave 2 and 3
  // have cosines of 0.6 and 0.8, the others 0: the threshold is their mean.
  const Traced run = looks();
  const auto cache = run.open(kSetting);
  run.run(*cache, 0, 9);
  cache->end_prefill();
  CHECK(cache->kept(0, 0) == 9_tok);
  run.run(*cache, 9, 1);
  check_near(values_held(*cache), {0, (5 + .6 * 2) / 2, (8 + .8 * 3) / 2, 9});
  const auto keys = floats_of(*cache, "layer0/k_rows/head0");
  CHECK(static_cast<double>(keys[16 + 5]) == Approx((1 + .6 * .6) / 2));
  CHECK(static_cast<double>(keys[16 + 2]) == Approx(.6 * .8 / 2));
  CHECK(static_cast<double>(floats_of(*cache, "layer0/limit")[2]) == Approx(1.4 / 6));
  // The next step: 8 leaves with a cosine of 0, below the moving average.
  run.run(*cache, 10, 1);
  check_near(values_held(*cache), {0, (5 + .6 * 2) / 2, 9, 10});
  CHECK(static_cast<double>(floats_of(*cache, "layer0/limit")[2]) == Approx(0.7 / 6));
  // Without the old threshold in the average it would have passed: half of the first row and of nothing.
  const auto eager = run.open(kSetting + ",alpha=0");
  run.run(*eager, 0, 9);
  eager->end_prefill();
  run.run(*eager, 9, 1);
  run.run(*eager, 10, 1);
  CHECK(floats_of(*eager, "layer0/k_rows/head0")[0] == 0.5F);
}

TEST_CASE("d2o: the paper's weights are exponentials that sum to 1", "[unit]") {
  const Traced run = looks();
  const auto cache = run.open(kSetting + ",weights=paper");
  run.run(*cache, 0, 9);
  cache->end_prefill();
  run.run(*cache, 9, 1);
  constexpr double e = 2.718281828459045, e6 = 1.822118800390509, e8 = 2.225540928492468;
  check_near(values_held(*cache), {0, (e * 5 + e6 * 2) / (e + e6), (e * 8 + e8 * 3) / (e + e8), 9});
}

TEST_CASE("d2o: shares of layers, the worked example; a lone head of even attention", "[unit]") {
  const auto shares = layer_shares({.1, .2, .4, .5}, .2);
  const std::vector<double> expected{.241256, .218298, .178727, .161719};
  for (std::size_t i = 0; i < 4; ++i) CHECK(shares[i] == Approx(expected[i]).margin(1e-6));
  CHECK(layer_shares({0, 0}, 3) == std::vector<double>{1, 1});  // cut, and not shared out again
  constexpr std::uint64_t one = std::uint64_t{1} << 31;
  CHECK(unevenness({{2 * one, 0}, {one, one}}) == Approx(.5 * 2 / 2.000001));
  CHECK(unevenness({{one, 5 * one}}) == 0);
}

TEST_CASE("d2o: the first two layers and the last keep all; short prompts keep what `least` says; kept counts", "[unit]") {
  const MethodChoice m = parse_choice("d2o:heavy_hitters=0.25,recent=0.25,allocation=uniform,least=3");
  const CacheShape shape = uniform_shape(4, 2, 1, 8, Dtype::f32);
  const auto cache = m.method->open(m.row, shape, {});
  const Traced run = random_traced(2, 1, 40, 8, 3);
  for (int l = 0; l < 4; ++l) run.run(*cache, 0, 19, l);
  cache->end_prefill();
  for (std::int64_t t = 19; t < 40; ++t) {
    for (int l = 0; l < 4; ++l) {
      run.run(*cache, t, 1, l);
      CHECK(cache->kept(l, 0) == Tokens(l == 2 ? 10 : t + 1));  // a quarter of 20, twice
    }
  }
  const auto little = m.method->open(m.row, shape, {});
  for (int l = 0; l < 4; ++l) run.run(*little, 0, 2, l);
  little->end_prefill();
  for (std::int64_t t = 2; t < 9; ++t)
    for (int l = 0; l < 4; ++l) run.run(*little, t, 1, l);
  CHECK(little->kept(2, 0) == 3_tok);
}

TEST_CASE("d2o: refusals; bytes of a prompt before and after the first step", "[unit]") {
  const MethodChoice none = parse_choice("d2o:heavy_hitters=0,recent=0"), plain = parse_choice("d2o");
  const CacheShape shape = uniform_shape(8, 4, 2, 64, Dtype::bf16);
  CHECK(why_not(*none.method, none.row, shape) == "heavy_hitters + recent is 0, must be above 0");
#ifndef KVATLAS_POISON_FORMULAS
  const Ledger before = formula_ledger(*plain.method, plain.row, shape, {.prompt = 999_tok});
  CHECK(before.of("rows", Side::key).value == 8 * 2 * 999 * 128);
  const Ledger after = formula_ledger(*plain.method, plain.row, shape, {.prompt = 999_tok, .generated = 11_tok});
  CHECK(after.of("rows", Side::key).value == 2 * (3 * 1010 + 5 * 200) * 128);
  CHECK(after.of("mass", Side::both).value == 2 * 5 * 200 * 8);
  CHECK(after.of("limit", Side::both).value == 5 * 12);
  CHECK(after.high_water() == before.total());
  CHECK(after.prefill().value == 8 * 2 * 999 * (256 + 8));
#endif
}

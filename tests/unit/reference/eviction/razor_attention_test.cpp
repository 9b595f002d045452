#include <cmath>
#include <cstring>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

using Kept = std::vector<std::int64_t>;

TensorMap scores(std::vector<float> induction, std::vector<float> echo) {
  TensorMap file;
  file["layer0.induction"] = {.dims = {static_cast<std::int64_t>(induction.size())}, .values = std::move(induction)};
  file["layer0.echo"] = {.dims = {static_cast<std::int64_t>(echo.size())}, .values = std::move(echo)};
  return file;
}

std::vector<float> floats(const KvCache& cache, const std::string& name) {
  const auto buffers = cache.buffers();
  const auto& bytes = find_buffer(buffers, name).bytes;
  std::vector<float> out(bytes.size() / sizeof(float));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

/// One head of one channel: tokens of these keys and values in turn, all queries 1; the output of the last token.
double toy(const std::string& setting, const std::vector<float>& keys, const std::vector<float>& values, std::size_t prompt) {
  const MethodChoice m = parse_choice(setting);
  const CacheShape shape = uniform_shape(1, 1, 1, 1, Dtype::f32);
  const TensorMap file = scores({0}, {0});
  const auto cache = m.method->open(m.row, shape, {.trained = &file});
  Array out({1, 1, 1});
  for (std::size_t t = 0; t < keys.size(); ++t) {
    if (t == prompt) cache->end_prefill();
    Array q({1, 1, 1}), k({1, 1, 1}), v({1, 1, 1});
    q.values()[0] = 1;
    k.values()[0] = keys[t];
    v.values()[0] = values[t];
    const auto at = static_cast<std::int64_t>(t);
    cache->forward(0, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {&at, {1}}}, out.view());
  }
  return static_cast<double>(out.values()[0]);
}

}  // namespace

TEST_CASE("razor_attention: the worked example with two tokens in the means", "[unit]") {
  // Keys 1 and 0 leave (values 2, 3), key 2 (value 1) stays; then key -1 (value 4) asks with q = 1.
  const std::vector<float> keys{1, 0, 2, -1}, values{2, 3, 1, 4};
  const std::string cut = "razor_attention:induction=0,echo=0,sinks=0,recent_window=1,compression=1024";
  CHECK(toy(cut, keys, values, 3) == Approx(1.547277).epsilon(1e-6));
  CHECK(toy(cut + ",compensation=unweighted", keys, values, 3) == Approx(1.380273).epsilon(1e-6));
  CHECK(toy("razor_attention:induction=0,echo=0,sinks=0,recent_window=3", keys, values, 3) == Approx(1.507347).epsilon(1e-6));
  // Where all that left is alike, the means are exact.
  CHECK(toy(cut, {1, 1, 2, -1}, {3, 3, 1, 4}, 3) == Approx((2 * 3 * std::exp(1) + std::exp(2) + 4 * std::exp(-1)) / (2 * std::exp(1) + std::exp(2) + std::exp(-1))).epsilon(1e-6));
}

TEST_CASE("razor_attention: retrieval heads keep all, the others sinks, a window that grows with the text, and means", "[unit]") {
  const Traced run = random_traced(4, 2, 40, 8, 4);
  const MethodChoice m = parse_choice("razor_attention:induction=0.5,echo=0,sinks=2,recent_window=4,compression=4");
  const TensorMap file = scores({0.1F, 0.2F, 0.0F, 0.9F}, {1, 1, 0, 0});  // the group's best: head 1
  const auto cache = m.method->open(m.row, run.shape(), {.trained = &file});
  run.run(*cache, 0, 12);
  CHECK(cache->kept(0, 0) == 12_tok);
  cache->end_prefill();
  CHECK(tokens_held(*cache, 0) == Kept{0, 1, 8, 9, 10, 11});
  CHECK(cache->kept(0, 1) == 12_tok);
  CHECK(floats(*cache, "layer0/v_mean/head0")[0] == 4.5F);  // tokens 2 .. 7
  run.run(*cache, 12, 1);
  CHECK(tokens_held(*cache, 0) == Kept{0, 1, 9, 10, 11, 12});
  CHECK(floats(*cache, "layer0/v_mean/head0")[0] == 5.0F);  // 2 .. 8
  for (std::int64_t t = 13; t < 24; ++t) run.run(*cache, t, 1);
  CHECK(tokens_held(*cache, 0) == Kept{0, 1, 18, 19, 20, 21, 22, 23});  // a quarter of 24
  CHECK(cache->kept(0, 1) == 24_tok);
  run.run(*cache, 24, 8);
  CHECK(tokens_held(*cache, 0) == Kept{0, 1, 24, 25, 26, 27, 28, 29, 30, 31});
  CHECK_THROWS_AS(cache->crop(Tokens(30)), Unsupported);
#ifndef KVATLAS_POISON_FORMULAS
  const Ledger formula = formula_ledger(*m.method, m.row, run.shape(), {.prompt = Tokens(12), .generated = Tokens(20)}, cache->content_counts());
  CHECK(formula.of("rows", Side::key).value == (32 + 10) * 8 * 4);
  CHECK(formula.of("mean", Side::value).value == 8 * 4);
  CHECK(formula.of("dropped", Side::both).value == 4);
  CHECK(formula.total() == count_ledger(cache->buffers()).total());
#endif
}

TEST_CASE("razor_attention: heads by induction and by echo scores, equal ones the lower", "[unit]") {
  const Traced run = random_traced(4, 4, 20, 8, 5);
  const auto kept = [&](const std::string& shares, const TensorMap& file) {
    const MethodChoice m = parse_choice("razor_attention:sinks=1,recent_window=2,compression=1024," + shares);
    const auto cache = m.method->open(m.row, run.shape(), {.trained = &file});
    run.run(*cache, 0, 20);
    cache->end_prefill();
    Kept rows;
    for (int h = 0; h < 4; ++h) rows.push_back(cache->kept(0, h).value);
    return rows;
  };
  const TensorMap file = scores({0.1F, 0.4F, 0.3F, 0.4F}, {0.9F, 0.1F, 0.2F, 0.3F});
  CHECK(kept("induction=0.25,echo=0", file) == Kept{3, 20, 3, 3});
  CHECK(kept("induction=0.5,echo=0.25", file) == Kept{20, 20, 3, 20});
  CHECK(kept("induction=0.375,echo=0", file) == Kept{3, 20, 3, 20});  // 1.5 heads: 2
  CHECK(kept("induction=0.125,echo=0", file) == Kept{3, 3, 3, 3});    // half a head: 0
  CHECK(kept("induction=1,echo=1", file) == Kept{20, 20, 20, 20});
}

TEST_CASE("razor_attention: refusals; more than two thirds less of a long cache", "[unit]") {
  const MethodChoice m = parse_choice("razor_attention");
  const CacheShape llama = uniform_shape(32, 32, 8, 128, Dtype::bf16);
  CHECK_THROWS_WITH(m.method->open(m.row, llama, {}), "razor_attention needs a file of trained parts");
  // Branches of a tree cannot be told apart from what has left.
  const Traced run = random_traced(1, 1, 20, 8, 6);
  const TensorMap file = scores({0}, {0});
  const MethodChoice cut = parse_choice("razor_attention:sinks=1,recent_window=2,compression=1024");
  const auto cache = cut.method->open(cut.row, run.shape(), {.trained = &file});
  run.run(*cache, 0, 10);
  cache->end_prefill();
  const std::vector<std::int64_t> at{10, 11};
  Array out({1, 2, 8});
  const auto part = [](View<const float> all) { return all.slice(1, 10, 2); };
  CHECK_THROWS_WITH(cache->forward(0, {.q = part(run.q()), .k = part(run.k()), .v = part(run.k()), .positions = {at.data(), {2}}, .mask = {.kind = MaskKind::bidirectional}}, out.view()),
                    "razor_attention: mask must be causal once tokens have joined the means");
#ifndef KVATLAS_POISON_FORMULAS
  const History h{.prompt = Tokens(131072)};
  const double ours = static_cast<double>(formula_ledger(*m.method, m.row, llama, h).total().value), full = 2.0 * 2 * 8 * 32 * 128 * 131072;
  CHECK(ours / full == Approx(39.0 / 256 + 217.0 / 256 * 0.2).epsilon(1e-3));  // 36 and 3 of 256 heads keep all, the others a fifth
#endif
}

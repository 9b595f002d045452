#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {
using Kept = std::vector<std::int64_t>;
TensorMap gates(std::vector<float> values) {
  TensorMap file;
  file["layer0.gates"] = {.dims = {static_cast<std::int64_t>(values.size())}, .values = std::move(values)};
  return file;
}
}  // namespace

TEST_CASE("duo_attention: heads with high gates keep all, the others sinks and recent tokens, at every step", "[unit]") {
  const Traced run = random_traced(6, 3, 30, 8, 4);
  const MethodChoice m = parse_choice("duo_attention:sparsity=0.5,sinks=2,recent_window=4");
  const TensorMap file = gates({0.1F, 0.9F, 0.5F});  // the quantile 0.5 of three gates is 0.5: two full heads
  const auto cache = m.method->open(m.row, run.shape(), {.trained = &file});
  run.run(*cache, 0, 12);
  CHECK(cache->kept(0, 0) == 12_tok);
  cache->end_prefill();
  CHECK(tokens_held(*cache, 0) == Kept{0, 1, 8, 9, 10, 11});
  CHECK(cache->kept(0, 1) == 12_tok);
  CHECK(cache->kept(0, 2) == 12_tok);
  for (std::int64_t t = 12; t < 20; ++t) {
    run.run(*cache, t, 1);
    CHECK(tokens_held(*cache, 0) == Kept{0, 1, t - 3, t - 2, t - 1, t});
    CHECK(cache->kept(0, 2) == Tokens(t + 1));
  }
  run.run(*cache, 20, 10);  // a step of many tokens is cut behind its own attention
  CHECK(tokens_held(*cache, 0) == Kept{0, 1, 26, 27, 28, 29});
#ifndef KVATLAS_POISON_FORMULAS
  const History h{.prompt = Tokens(12), .generated = Tokens(18)};
  CHECK(formula_ledger(*m.method, m.row, run.shape(), h, cache->content_counts()).total() == count_ledger(cache->buffers()).total());
#endif
}

TEST_CASE("duo_attention: all full at sparsity 0, none at 1; equal gates go to the lower head", "[unit]") {
  const Traced run = random_traced(2, 2, 20, 8, 5);
  const auto kept = [&](const std::string& setting, const TensorMap& file) {
    const MethodChoice m = parse_choice(setting);
    const auto cache = m.method->open(m.row, run.shape(), {.trained = &file});
    run.run(*cache, 0, 20);
    cache->end_prefill();
    return Kept{cache->kept(0, 0).value, cache->kept(0, 1).value};
  };
  CHECK(kept("duo_attention:sparsity=0,sinks=1,recent_window=2", gates({0, 0})) == Kept{20, 20});
  CHECK(kept("duo_attention:sparsity=1,sinks=1,recent_window=2", gates({1, 1})) == Kept{3, 3});
  CHECK(kept("duo_attention:sparsity=0.5,sinks=1,recent_window=2", gates({1, 1})) == Kept{20, 3});
}

TEST_CASE("duo_attention: without gates it does not open; Llama-3-8B at a million tokens holds about half", "[unit]") {
  const MethodChoice m = parse_choice("duo_attention");
  const CacheShape llama = uniform_shape(32, 32, 8, 128, Dtype::bf16);
  CHECK_THROWS_WITH(m.method->open(m.row, llama, {}), "duo_attention needs a file of trained parts");
#ifndef KVATLAS_POISON_FORMULAS
  const Ledger ledger = formula_ledger(*m.method, m.row, llama, {.prompt = Tokens(1 << 20)});
  // Half of 137.4 GB, and 320 rows for each of 128 streaming heads.
  CHECK(static_cast<double>(ledger.of("rows", Side::key).value + ledger.of("rows", Side::value).value) == Approx(68.74e9 + 0.021e9).epsilon(1e-3));
#endif
}

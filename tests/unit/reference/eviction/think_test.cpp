#include "core/errors.hpp"
#include "core/rope.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("think: of four channels the two stay in which queries and keys are large; recent and new keys stay whole", "[unit]") {
  const MethodChoice m = parse_choice("think:ratio=0.5,observation_window=2,recent_window=1");
  const CacheShape shape = uniform_shape(1, 2, 1, 4, Dtype::f32);
  const auto cache = m.method->open(m.row, shape, {});
  // Squares of the last two queries, both heads: channel 0 large, 1 small, 2 medium, 3 large; of keys: 0 small, 1 large, 2 medium, 3 large.
  Array q({2, 4, 4}), k({1, 4, 4}), v({1, 4, 4}), out({2, 4, 4});
  const float of_q[4] = {8, 1, 3, 8}, of_k[4] = {0.1F, 9, 3, 9};
  for (std::int64_t t = 0; t < 4; ++t)
    for (std::int64_t c = 0; c < 4; ++c) {
      k.view()(0, t, c) = of_k[c] + static_cast<float>(t);
      for (std::int64_t h = 0; h < 2; ++h) q.view()(h, t, c) = t < 2 ? 100.0F * static_cast<float>(4 - c) : of_q[c];  // older queries do not score
    }
  const std::vector<std::int64_t> at{0, 1, 2, 3};
  cache->forward(0, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {at.data(), {4}}}, out.view());
  cache->end_prefill();
  // Means of squares: 64 times 3.8, 1 times 111.5, 9 times 21.5, 64 times 111.5.
  const auto buffers = cache->buffers();
  CHECK(find_buffer(buffers, "layer0/k_channels/head0").bytes == std::vector<std::byte>{std::byte{0b1001}});
  CHECK(find_buffer(buffers, "layer0/k_thin_rows/head0").bytes.size() == 3 * 2 * 4);
  CHECK(find_buffer(buffers, "layer0/k_rows/head0").bytes.size() == 4 * 4);
  CHECK(cache->kept(0, 0) == 4_tok);
}

TEST_CASE("think: pruned channels read as zeros, and a prompt within the recent window stays whole", "[unit]") {
  const MethodChoice m = parse_choice("think:ratio=0.75,recent_window=2");
  const CacheShape shape = uniform_shape(1, 1, 1, 8, Dtype::f32);
  const auto store = m.method->open_side(m.row, shape.classes.front(), 0, Side::key, Dtype::f32);
  const Inputs in = inputs_for(shape, 0, 0, 6, 4);
  store->observe(in.step());
  store->append(in.k.view());
  store->settle(true);
  Array rows({6, 8});
  store->read(0, 0, rows.view());
  for (std::int64_t t = 0; t < 6; ++t) {
    int zeros = 0;
    for (std::int64_t c = 0; c < 8; ++c) {
      const bool kept = rows.view()(t, c) == in.k.view()(0, t, c);
      CHECK((kept || rows.view()(t, c) == 0.0F));
      zeros += kept ? 0 : 1;
    }
    CHECK(zeros == (t < 4 ? 6 : 0));
  }
  CHECK_THROWS_WITH(store->crop(3_tok), "crop to 3 tokens would take back keys whose channels are pruned: 4 are");
  store->crop(5_tok);
  CHECK(store->size() == 5_tok);
}

TEST_CASE("think: bytes at 40 % of 128 channels", "[unit]") {
#ifndef KVATLAS_POISON_FORMULAS
  const MethodChoice m = parse_choice("think");
  const Ledger ledger = formula_ledger(*m.method, m.row, uniform_shape(1, 4, 2, 128, Dtype::bf16), {.prompt = Tokens(1032), .generated = Tokens(10)});
  CHECK(ledger.of("thin_rows", Side::key).value == 1000 * 2 * 77 * 2);  // 128 - int(51.2)
  CHECK(ledger.of("rows", Side::key).value == 42 * 2 * 128 * 2);
  CHECK(ledger.of("channels", Side::key).value == 2 * 16);
  CHECK(ledger.of("rows", Side::value).value == 1042 * 2 * 128 * 2);
#endif
}

#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/quantization/zipcache/sets.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;
using namespace kvatlas::zipcache_sets;

TEST_CASE("zipcache: keys per channel of a set, values over all heads of a row after their channels are evened out, by hand", "[unit]") {
  const Settings s{.kv_heads = 1, .k_dim = 8, .v_dim = 8, .k_bits = {4, 2}, .v_bits = {4, 2}, .meta = MetaType::f32};
  Array k({1, 4, 8}), v({1, 4, 8});
  const float keys[4] = {0, 15, 1, 4};  // tokens 0 and 1 are salient: step 1; 2 and 3 regular: step 1, minimum 1
  for (std::int64_t t = 0; t < 4; ++t)
    for (std::int64_t c = 0; c < 8; ++c) {
      k.view()(0, t, c) = keys[t];
      v.view()(0, t, c) = c == 0 ? 4.0F * static_cast<float>(t) : 0.0F;  // channel 0: largest 12; the others are zeros
    }
  const zipcache_sets::CodedTokens t = compress(s, k.view(), v.view(), {{1, 1, 0, 0}});
  CHECK(t.sets[0].rows == 2);
  CHECK(std::to_integer<int>(t.sets[0].k_codes[0]) == 0x00);
  CHECK(std::to_integer<int>(t.sets[0].k_codes[4]) == 0xFF);
  CHECK(std::to_integer<int>(t.sets[1].k_codes[0]) == 0x00);
  CHECK(std::to_integer<int>(t.sets[1].k_codes[2]) == 0xFF);  // code 3 of 1 .. 4 in two bits
  Array out({4, 8});
  read_keys(s, t, 0, out.view());
  for (std::int64_t i = 0; i < 4; ++i) CHECK(out.view()(i, 5) == keys[i]);
  float factor = 0;
  num::load(Dtype::f32, std::span(t.v_factors).first(4), std::span(&factor, 1));
  CHECK(factor == std::sqrt(12.0F));
  num::load(Dtype::f32, std::span(t.v_factors).subspan(4, 4), std::span(&factor, 1));
  CHECK(factor == 1.0F);  // a channel of zeros
  read_values(s, t, 0, out.view());
  CHECK(out.view()(0, 0) == 0.0F);
  CHECK(std::fabs(out.view()(3, 0) - 12.0F) < 1e-5F);
  CHECK(out.view()(3, 1) == 0.0F);
}

TEST_CASE("zipcache: the least salient share is regular, the earlier token of equals", "[unit]") {
  CHECK(regular_tokens(std::vector<float>{0.5F, 0.1F, 0.3F, 0.1F, 0.1F}, 0.4) == Slots{1, 3});
  CHECK(regular_tokens(std::vector<float>{0.5F, 0.1F}, 0.4).empty());
}

TEST_CASE("zipcache: every `gap` generated tokens the new ones join the sets", "[unit]") {
  const MethodChoice m = parse_choice("zipcache:gap=5");
  Scenario s{.method = m.method, .shape = uniform_shape(1, 4, 2, 32, Dtype::f16, {.rotary_dim = 32}), .row = m.row, .prompt = 30, .chunk = 30, .decode = 0, .seed = 2};
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  const auto plain = [&] { return count_ledger(cache->buffers()).of("residual", Side::key).value / (2 * 32 * 2); };
  CHECK(plain() == 0);
  run_decode(*cache, s, 0, 4);
  CHECK(plain() == 4);
  CHECK_NOTHROW(cache->check_crop(kvatlas::Tokens(31)));
  run_decode(*cache, s, 4, 1);
  CHECK(plain() == 0);
  CHECK_THROWS_AS(cache->check_crop(kvatlas::Tokens(34)), Unsupported);
  // 35 tokens, 12 + 2 regular: 21 rows of 64 codes at 4 bits, 14 at 2.
  CHECK(count_ledger(cache->buffers()).of("codes", Side::key).value == 21 * 32 + 14 * 16);
}

TEST_CASE("zipcache: 3.2 bits a value at 60% salient tokens, 4 bytes a token of values and a bit of mask a head", "[unit]") {
#ifndef KVATLAS_POISON_FORMULAS
  const MethodChoice m = parse_choice("zipcache");
  const CacheShape shape = uniform_shape(1, 8, 8, 128, Dtype::f16);
  const Ledger ledger = formula_ledger(*m.method, m.row, shape, {.prompt = kvatlas::Tokens(1000)});
  for (const Side side : {Side::key, Side::value}) CHECK(8.0 * static_cast<double>(ledger.of("codes", side).value) == 3.2 * 1000 * 1024);
  CHECK(ledger.of("rows", Side::value).value == 4 * 1000);
  CHECK(ledger.of("salient", Side::both).value == 8 * 125);
  CHECK(ledger.of("channels", Side::key).value == 8 * 1024);
  CHECK(ledger.of("channels", Side::value).value == 2 * 1024);
#endif
}

TEST_CASE("zipcache: widths without whole planes are refused", "[unit]") {
  const MethodChoice m = parse_choice("zipcache:salient_bits=3");
  CHECK(why_not(*m.method, m.row, uniform_shape(1, 2, 1, 64, Dtype::bf16)) == "salient_bits is 3, must be 1, 2, 4 or 8: codes are packed in planes of a byte");
}

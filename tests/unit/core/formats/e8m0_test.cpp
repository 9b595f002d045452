#include "core/formats/e8m0.hpp"

#include <algorithm>

#include "tests/catch.hpp"
#include "tests/unit/core/formats/float_oracle.hpp"

using namespace kvatlas::num;

namespace {

/// Both rules by search: the greatest power of two below amax, the least one that brings amax under element_max.
int oracle_floor(float amax, int element_exponent) {
  int exponent = -200;
  while (std::ldexp(1.0L, exponent + 1) <= static_cast<long double>(amax)) ++exponent;
  return std::clamp(exponent - element_exponent + 127, 0, 254);
}
int oracle_round_up(float amax, float element_max) {
  int exponent = -200;
  while (static_cast<long double>(element_max) * std::ldexp(1.0L, exponent) < static_cast<long double>(amax)) ++exponent;
  return std::clamp(exponent + 127, 0, 254);
}

}  // namespace

TEST_CASE("every E8M0 code is its power of two and 0xFF is NaN", "[unit]") {
  for (int code = 0; code < 255; ++code) {
    CAPTURE(code);
    REQUIRE(static_cast<long double>(decode_e8m0(static_cast<std::uint8_t>(code))) == std::ldexp(1.0L, code - 127));
  }
  REQUIRE(std::isnan(decode_e8m0(0xFF)));
}

TEST_CASE("both scale rules of E8M0 agree with a search over the exponents", "[unit]") {
  int wrong = 0;
  const auto check = [&](float amax) {
    wrong += e8m0_scale_floor(amax, 6.0F) != oracle_floor(amax, 2);
    wrong += e8m0_scale_floor(amax, 448.0F) != oracle_floor(amax, 8);
    wrong += e8m0_scale_round_up(amax, 6.0F) != oracle_round_up(amax, 6.0F);
    wrong += e8m0_scale_round_up(amax, 448.0F) != oracle_round_up(amax, 448.0F);
    wrong += e8m0_scale_round_up(amax, 1.0F) != oracle_round_up(amax, 1.0F);
  };
  for (int e = -149; e <= 127; ++e)
    for (const float m : {1.0F, 1.5F, 1.75F, 1.9999999F})
      for (const float x : {std::ldexp(m, e)})
        for (const float y : {std::nextafter(x, 0.0F), x, std::nextafter(x, INFINITY)})
          if (y > 0.0F && std::isfinite(y)) check(y);
  REQUIRE(wrong == 0);
}

TEST_CASE("E8M0 scale rules by hand", "[unit]") {
  CHECK(e8m0_scale_floor(6.0F, 6.0F) == 127);
  CHECK(e8m0_scale_floor(7.9F, 6.0F) == 127);  // 7.9 saturates to 6
  CHECK(e8m0_scale_floor(8.0F, 6.0F) == 128);
  CHECK(e8m0_scale_round_up(6.0F, 6.0F) == 127);
  CHECK(e8m0_scale_round_up(6.0000005F, 6.0F) == 128);
  CHECK(e8m0_scale_round_up(12.0F, 6.0F) == 128);
  for (const auto rule : {e8m0_scale_floor, e8m0_scale_round_up}) {
    CHECK(rule(0.0F, 6.0F) == 0x00);
    CHECK(rule(0x1p-149F, 6.0F) == 0x00);
    CHECK(rule(INFINITY, 6.0F) == 0xFF);
    CHECK(rule(oracle::from_bits(0x7FC00000U), 6.0F) == 0xFF);
  }
}

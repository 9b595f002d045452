#include "core/formats/fp4.hpp"

#include "tests/catch.hpp"
#include "tests/unit/core/formats/float_oracle.hpp"

using kvatlas::num::decode_e2m1;
using kvatlas::num::encode_e2m1;

TEST_CASE("the sixteen E2M1 codes have their values", "[unit]") {
  const float magnitudes[8] = {0.0F, 0.5F, 1.0F, 1.5F, 2.0F, 3.0F, 4.0F, 6.0F};
  for (std::uint8_t code = 0; code < 16; ++code) {
    CAPTURE(int{code});
    const float value = decode_e2m1(code);
    REQUIRE(std::fabs(value) == magnitudes[code & 7]);
    REQUIRE(std::signbit(value) == (code >= 8));
    REQUIRE(encode_e2m1(value) == code);
    REQUIRE(oracle::bits(decode_e2m1(static_cast<std::uint8_t>(code | 0xF0U))) == oracle::bits(value));
  }
}

TEST_CASE("E2M1 follows its comparison ladder, ties to the even code", "[unit]") {
  const auto ladder = [](float m) -> std::uint32_t {
    return m <= 0.25F ? 0 : m < 0.75F ? 1 : m <= 1.25F ? 2 : m < 1.75F ? 3 : m <= 2.5F ? 4 : m < 3.5F ? 5 : m <= 5.0F ? 6 : 7;
  };
  const oracle::Encoder want({.mantissa_bits = 1, .bias = 1, .largest = 7, .saturates = true});
  int wrong = 0;
  const auto check = [&](float x) {
    if (std::isnan(x)) return;
    const std::uint32_t sign = std::signbit(x) ? 8U : 0U;
    wrong += encode_e2m1(x) != (ladder(std::fabs(x)) | sign) || encode_e2m1(x) != (want(x) | sign);
  };
  for (const float x : oracle::hard_floats(want)) check(x);
  for (std::uint64_t u = 0; u < 0x100000000ULL; u += 4099) check(oracle::from_bits(static_cast<std::uint32_t>(u)));
  REQUIRE(wrong == 0);
}

TEST_CASE("E2M1 tie and edge vectors hold", "[unit]") {
  CHECK(encode_e2m1(0.25F) == 0);
  CHECK(encode_e2m1(0.75F) == 2);
  CHECK(encode_e2m1(1.25F) == 2);
  CHECK(encode_e2m1(1.75F) == 4);
  CHECK(encode_e2m1(2.5F) == 4);
  CHECK(encode_e2m1(3.5F) == 6);
  CHECK(encode_e2m1(5.0F) == 6);
  CHECK(encode_e2m1(5.0000005F) == 7);
  CHECK(encode_e2m1(INFINITY) == 7);
  CHECK(encode_e2m1(-INFINITY) == 15);
  CHECK(encode_e2m1(-0.1F) == 8);
  CHECK(encode_e2m1(oracle::from_bits(0xFFC00000U)) == 7);
}

#include "core/formats/bf16.hpp"

#include "tests/catch.hpp"
#include "tests/unit/core/formats/float_oracle.hpp"

using kvatlas::num::decode_bf16;
using kvatlas::num::encode_bf16;

namespace {
constexpr oracle::Format kBf16{.mantissa_bits = 7, .bias = 127, .largest = 0x7F7F, .saturates = false};
}

TEST_CASE("every bf16 pattern decodes to the value of its fields and encodes back to itself", "[unit]") {
  int wrong = 0;
  for (std::uint32_t code = 0; code < 0x10000U; ++code) {
    const float value = decode_bf16(static_cast<std::uint16_t>(code));
    const std::uint32_t magnitude = code & 0x7FFFU;
    const std::uint32_t back = encode_bf16(value);
    if (magnitude > 0x7F80U) {
      wrong += !std::isnan(value) || back != (code | 0x0040U);
      continue;
    }
    const long double want = magnitude == 0x7F80U ? INFINITY : oracle::magnitude(kBf16, magnitude);
    wrong += static_cast<long double>(std::fabs(value)) != want || std::signbit(value) != (code >= 0x8000U) || back != code;
  }
  REQUIRE(wrong == 0);
}

TEST_CASE("bf16 rounds to nearest even at every value, midpoint and neighbour, and on a dense sample", "[unit]") {
  const oracle::Encoder want(kBf16);
  int wrong = 0;
  const auto check = [&](float x) {
    if (std::isnan(x)) return;
    wrong += encode_bf16(x) != (want(x) | (std::signbit(x) ? 0x8000U : 0U));
  };
  for (const float x : oracle::hard_floats(want)) check(x);
  for (std::uint64_t u = 0; u < 0x100000000ULL; u += 4099) check(oracle::from_bits(static_cast<std::uint32_t>(u)));
  REQUIRE(wrong == 0);
}

TEST_CASE("bf16 tie and edge vectors hold", "[unit]") {
  CHECK(encode_bf16(1.00390625F) == 0x3F80);
  CHECK(encode_bf16(1.01171875F) == 0x3F82);
  CHECK(encode_bf16(3.3F) == 0x4053);
  CHECK(encode_bf16(65504.0F) == 0x4780);
  CHECK(encode_bf16(1e-40F) == 0x0001);
  CHECK(encode_bf16(3.4028235e38F) == 0x7F80);
  CHECK(encode_bf16(oracle::from_bits(0x7F800001U)) == 0x7FC0);
  CHECK(encode_bf16(oracle::from_bits(0xFFFFFFFFU)) == 0xFFFF);
}

#include "core/formats/fp16.hpp"

#include "tests/catch.hpp"
#include "tests/unit/core/formats/float_oracle.hpp"

using kvatlas::num::decode_fp16;
using kvatlas::num::encode_fp16;

namespace {
constexpr oracle::Format kFp16{.mantissa_bits = 10, .bias = 15, .largest = 0x7BFF, .saturates = false};
}

TEST_CASE("every fp16 pattern decodes to the value of its fields and encodes back to itself", "[unit]") {
  int wrong = 0;
  for (std::uint32_t code = 0; code < 0x10000U; ++code) {
    const float value = decode_fp16(static_cast<std::uint16_t>(code));
    const std::uint32_t magnitude = code & 0x7FFFU;
    const std::uint32_t back = encode_fp16(value);
    if (magnitude > 0x7C00U) {
      wrong += !std::isnan(value) || (oracle::bits(value) & 0x00400000U) == 0 || back != (code | 0x0200U);
      continue;
    }
    const long double want = magnitude == 0x7C00U ? INFINITY : oracle::magnitude(kFp16, magnitude);
    wrong += static_cast<long double>(std::fabs(value)) != want || std::signbit(value) != (code >= 0x8000U) || back != code;
  }
  REQUIRE(wrong == 0);
}

TEST_CASE("fp16 rounds to nearest even at every value, midpoint and neighbour, and on a dense sample", "[unit]") {
  const oracle::Encoder want(kFp16);
  int wrong = 0;
  const auto check = [&](float x) {
    if (std::isnan(x)) return;
    wrong += encode_fp16(x) != (want(x) | (std::signbit(x) ? 0x8000U : 0U));
  };
  for (const float x : oracle::hard_floats(want)) check(x);
  for (std::uint64_t u = 0; u < 0x100000000ULL; u += 4099) check(oracle::from_bits(static_cast<std::uint32_t>(u)));
  REQUIRE(wrong == 0);
}

TEST_CASE("fp16 tie and edge vectors hold", "[unit]") {
  CHECK(encode_fp16(1.00048828125F) == 0x3C00);
  CHECK(encode_fp16(1.00146484375F) == 0x3C02);
  CHECK(encode_fp16(2049.0F) == 0x6800);
  CHECK(encode_fp16(2051.0F) == 0x6802);
  CHECK(encode_fp16(65519.9F) == 0x7BFF);
  CHECK(encode_fp16(65520.0F) == 0x7C00);
  CHECK(encode_fp16(0x1p-25F) == 0x0000);
  CHECK(encode_fp16(1.5F * 0x1p-25F) == 0x0001);
  CHECK(encode_fp16(0.1F) == 0x2E66);
  CHECK(encode_fp16(3.3F) == 0x429A);
  CHECK(encode_fp16(-0.0F) == 0x8000);
  CHECK(encode_fp16(-INFINITY) == 0xFC00);
  CHECK(encode_fp16(oracle::from_bits(0xFFC00000U)) == 0xFE00);
}

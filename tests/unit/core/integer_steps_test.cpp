#include "core/integer_steps.hpp"

#include <cmath>

#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("limbs of every query code give it back, and codes are the nearest integers, ties to even", "[unit]") {
  for (std::int32_t code = -num::kQueryCodes; code <= num::kQueryCodes; ++code) {
    const std::uint32_t bits = num::signed_code_bits(static_cast<float>(code), 1.0F);
    REQUIRE(256 * num::signed_high(bits) + num::signed_low(bits) == code);
    REQUIRE((num::signed_low(bits) >= -128 && num::signed_low(bits) <= 127));
    REQUIRE((num::signed_high(bits) >= -128 && num::signed_high(bits) <= 127));
  }
  for (const float x : {0.5F, 1.5F, 2.5F, -0.5F, -1.5F, 1000.5F, 32638.5F}) REQUIRE(static_cast<std::int16_t>(num::signed_code_bits(x, 1.0F) & 0xFFFFU) == static_cast<std::int16_t>(std::nearbyint(x)));
  for (std::uint32_t code = 0; code <= 65535; code += 3) REQUIRE((num::code_bits(static_cast<float>(code), 1.0F) & 0xFFFFU) == code);
  REQUIRE(num::weight_of(1.0F) == 65535.0F);
  REQUIRE(num::weight_of(0.0F) == 0.0F);
  REQUIRE(num::weight_of(0.5F) == 32768.0F);  // 32767.5, to even
}

TEST_CASE("the largest factor becomes the largest code whatever its size, and what counts as zero becomes code 0", "[unit]") {
  for (float peak = 0x1p-100F; peak < 0x1p100F; peak *= 1.37F) {
    const num::IntegerStep q = num::integer_step(peak, num::kQueryCodes), w = num::integer_step(peak, num::kWeightCodes);
    REQUIRE(static_cast<std::int16_t>(num::signed_code_bits(peak, q.reciprocal) & 0xFFFFU) == num::kQueryCodes);
    REQUIRE(static_cast<std::int16_t>(num::signed_code_bits(-peak, q.reciprocal) & 0xFFFFU) == -num::kQueryCodes);
    REQUIRE((num::code_bits(peak, w.reciprocal) & 0xFFFFU) == static_cast<std::uint32_t>(num::kWeightCodes));
  }
  const num::IntegerStep none = num::integer_step(0x1p-101F, num::kWeightCodes);
  REQUIRE((none.step == 0.0F && none.reciprocal == 0.0F));
  REQUIRE((num::code_bits(0x1p-101F, none.reciprocal) & 0xFFFFU) == 0);
}

TEST_CASE("byte permutes choose the bytes that the digits of the selector name, lowest digit first", "[unit]") {
  REQUIRE(num::permute_bytes(0x33221100U, 0x77665544U, 0x3210U) == 0x33221100U);
  REQUIRE(num::permute_bytes(0x33221100U, 0x77665544U, 0x5140U) == 0x55114400U);
  REQUIRE(num::permute_bytes(0x33221100U, 0x77665544U, 0x7632U) == 0x77663322U);
}

#include "core/formats/fp8.hpp"

#include "tests/catch.hpp"
#include "tests/unit/core/formats/float_oracle.hpp"

using namespace kvatlas::num;

namespace {

constexpr oracle::Format kE4m3{.mantissa_bits = 3, .bias = 7, .largest = 0x7E, .saturates = true};
constexpr oracle::Format kE5m2{.mantissa_bits = 2, .bias = 15, .largest = 0x7B, .saturates = true};

int wrong_encodings(const oracle::Format& format, std::uint8_t (*encode)(float)) {
  const oracle::Encoder want(format);
  int wrong = 0;
  const auto check = [&](float x) {
    if (std::isnan(x)) return;
    wrong += encode(x) != (want(x) | (std::signbit(x) ? 0x80U : 0U));
  };
  for (const float x : oracle::hard_floats(want)) check(x);
  for (std::uint64_t u = 0; u < 0x100000000ULL; u += 4099) check(oracle::from_bits(static_cast<std::uint32_t>(u)));
  check(INFINITY);
  check(-INFINITY);
  return wrong;
}

}  // namespace

TEST_CASE("every E4M3 code decodes to the value of its fields and encodes back to itself", "[unit]") {
  for (std::uint32_t code = 0; code < 0x100U; ++code) {
    CAPTURE(code);
    const float value = decode_e4m3(static_cast<std::uint8_t>(code));
    REQUIRE(std::signbit(value) == (code >= 0x80U));
    if ((code & 0x7FU) == 0x7FU) {
      REQUIRE(std::isnan(value));
      REQUIRE(encode_e4m3(value) == 0x7F);
      continue;
    }
    REQUIRE(static_cast<long double>(std::fabs(value)) == oracle::magnitude(kE4m3, code & 0x7FU));
    REQUIRE(encode_e4m3(value) == code);
  }
  REQUIRE(decode_e4m3(0x7E) == 448.0F);
  REQUIRE(decode_e4m3(0x01) == 0x1p-9F);
}

TEST_CASE("every E5M2 code decodes to the value of its fields; finite ones encode back to themselves", "[unit]") {
  for (std::uint32_t code = 0; code < 0x100U; ++code) {
    CAPTURE(code);
    const float value = decode_e5m2(static_cast<std::uint8_t>(code));
    REQUIRE(std::signbit(value) == (code >= 0x80U));
    const std::uint32_t magnitude = code & 0x7FU;
    if (magnitude > 0x7CU) {
      REQUIRE(std::isnan(value));
      REQUIRE(encode_e5m2(value) == 0x7F);
    } else if (magnitude == 0x7CU) {
      REQUIRE(std::isinf(value));
      REQUIRE(encode_e5m2(value) == code - 1);  // saturating
    } else {
      REQUIRE(static_cast<long double>(std::fabs(value)) == oracle::magnitude(kE5m2, magnitude));
      REQUIRE(encode_e5m2(value) == code);
    }
  }
}

TEST_CASE("fp8 encoders round to nearest even and saturate", "[unit]") {
  REQUIRE(wrong_encodings(kE4m3, [](float x) { return encode_e4m3(x); }) == 0);
  REQUIRE(wrong_encodings(kE5m2, [](float x) { return encode_e5m2(x); }) == 0);
}

TEST_CASE("fp8 tie and edge vectors hold", "[unit]") {
  CHECK(encode_e4m3(0x1p-10F) == 0x00);
  CHECK(encode_e4m3(1.5F * 0x1p-10F) == 0x01);
  CHECK(encode_e4m3(0x1p-7F) == 0x04);
  CHECK(encode_e4m3(0.1F) == 0x1D);
  CHECK(encode_e4m3(1.0625F) == 0x38);
  CHECK(encode_e4m3(1.1875F) == 0x3A);
  CHECK(encode_e4m3(3.3F) == 0x45);
  CHECK(encode_e4m3(17.0F) == 0x58);
  CHECK(encode_e4m3(19.0F) == 0x5A);
  CHECK(encode_e4m3(432.0F) == 0x7E);
  CHECK(encode_e4m3(464.0F) == 0x7E);
  CHECK(encode_e4m3(500.0F) == 0x7E);
  CHECK(encode_e4m3(1e9F) == 0x7E);
  CHECK(encode_e4m3(-0.0625F) == 0x98);
  CHECK(encode_e4m3(-1e-9F) == 0x80);
  CHECK(decode_e4m3(0x1D) == 0.1015625F);
  CHECK(encode_e5m2(0x1p-17F) == 0x00);
  CHECK(encode_e5m2(0.1F) == 0x2E);
  CHECK(encode_e5m2(1.125F) == 0x3C);
  CHECK(encode_e5m2(1.375F) == 0x3E);
  CHECK(encode_e5m2(3.3F) == 0x43);
  CHECK(encode_e5m2(60000.0F) == 0x7B);
  CHECK(encode_e5m2(65504.0F) == 0x7B);
  CHECK(decode_e5m2(0x2E) == 0.09375F);
  CHECK(encode_e4m3(oracle::from_bits(0xFFC00000U)) == 0x7F);
  CHECK(encode_e5m2(oracle::from_bits(0xFFC00000U)) == 0x7F);
}

TEST_CASE("UE4M3 is E4M3 without a sign", "[unit]") {
  for (std::uint32_t code = 0; code < 0x7FU; ++code) {
    const float value = decode_ue4m3(static_cast<std::uint8_t>(code));
    REQUIRE(static_cast<long double>(value) == oracle::magnitude(kE4m3, code));
    REQUIRE(encode_ue4m3(value) == code);
    REQUIRE(decode_ue4m3(static_cast<std::uint8_t>(code | 0x80U)) == value);
  }
  REQUIRE(encode_ue4m3(-0.0F) == 0x00);
  REQUIRE(encode_ue4m3(-3.0F) == 0x00);
  REQUIRE(encode_ue4m3(1e9F) == 0x7E);
  REQUIRE(encode_ue4m3(oracle::from_bits(0x7FC00000U)) == 0x7F);
}

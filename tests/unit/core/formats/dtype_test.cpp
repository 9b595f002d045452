#include "core/formats/dtype.hpp"

#include <stdexcept>
#include <vector>

#include "tests/catch.hpp"
#include "tests/unit/core/formats/float_oracle.hpp"

using namespace kvatlas;

namespace {

/// Every 16-bit upper half with four lower halves: all signs, exponents, ties of bf16 and of fp16, NaN, infinities.
std::vector<float> many_floats() {
  std::vector<float> out;
  for (std::uint32_t high = 0; high < 0x10000U; ++high)
    for (const std::uint32_t low : {0x0000U, 0x1000U, 0x8000U, 0xF001U}) out.push_back(oracle::from_bits((high << 16) | low));
  return out;
}

std::vector<std::uint32_t> bits_of_all(const std::vector<float>& values) {
  std::vector<std::uint32_t> out;
  for (const float x : values) out.push_back(oracle::bits(x));
  return out;
}

}  // namespace

TEST_CASE("a stored row has the bits of its values stored one by one, at every alignment and odd length", "[unit]") {
  const std::vector<float> all = many_floats();
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16})
    for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{33}, all.size()}) {
      CAPTURE(name_of(dtype), count);
      const std::vector<float> values(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count));
      const auto width = static_cast<std::size_t>(bytes_of(dtype));
      std::vector<std::byte> guarded(count * width + 2, std::byte{0xA5});
      num::store(dtype, values, std::span(guarded).subspan(1, count * width));
      REQUIRE(guarded.front() == std::byte{0xA5});
      REQUIRE(guarded.back() == std::byte{0xA5});
      int wrong = 0;
      std::vector<std::uint32_t> codes(count);
      for (std::size_t i = 0; i < count; ++i) {
        codes[i] = num::encode(dtype, values[i]);
        for (std::size_t b = 0; b < width; ++b)
          wrong += static_cast<std::uint32_t>(guarded[1 + i * width + b]) != ((codes[i] >> (8 * b)) & 0xFFU);
      }
      REQUIRE(wrong == 0);
      std::vector<float> loaded(count);
      num::load(dtype, std::span<const std::byte>(guarded).subspan(1, count * width), loaded);
      std::vector<float> rounded = values;
      num::round_to(dtype, std::span<float>(rounded));
      for (std::size_t i = 0; i < count; ++i) {
        wrong += oracle::bits(loaded[i]) != oracle::bits(num::decode(dtype, codes[i]));
        wrong += oracle::bits(rounded[i]) != oracle::bits(num::round_to(dtype, values[i]));
        wrong += oracle::bits(rounded[i]) != oracle::bits(loaded[i]);
      }
      REQUIRE(wrong == 0);
    }
}

TEST_CASE("all 16-bit codes load in bulk as they decode one by one", "[unit]") {
  std::vector<std::byte> stored(0x20000);
  for (std::size_t code = 0; code < 0x10000; ++code) {
    stored[2 * code] = static_cast<std::byte>(code & 0xFFU);
    stored[2 * code + 1] = static_cast<std::byte>(code >> 8);
  }
  for (const Dtype dtype : {Dtype::bf16, Dtype::f16}) {
    std::vector<float> loaded(0x10000);
    num::load(dtype, stored, loaded);
    std::vector<float> single(0x10000);
    for (std::uint32_t code = 0; code < 0x10000U; ++code) single[code] = num::decode(dtype, code);
    REQUIRE(bits_of_all(loaded) == bits_of_all(single));
  }
}

TEST_CASE("rounding to a dtype is the identity for f32 and idempotent for the others", "[unit]") {
  CHECK(num::round_to(Dtype::f32, 0.1F) == 0.1F);
  CHECK(num::round_to(Dtype::f16, 0.1F) == 0.0999755859375F);
  CHECK(num::round_to(Dtype::bf16, 3.3F) == 3.296875F);
  CHECK(num::round_to(Dtype::f16, 1e6F) == INFINITY);
  CHECK(num::round_to(Dtype::f16, 1e-9F) == 0.0F);
  CHECK(std::isnan(num::round_to(Dtype::bf16, NAN)));
  CHECK(num::encode(Dtype::f32, 1.0F) == 0x3F800000U);
  for (const float x : {0.1F, -3.3F, 1e-6F, 7e4F})
    for (const Dtype dtype : {Dtype::bf16, Dtype::f16})
      CHECK(num::round_to(dtype, num::round_to(dtype, x)) == num::round_to(dtype, x));
}

TEST_CASE("a row buffer of the wrong size is our own bug", "[unit]") {
  std::vector<float> values(3);
  std::vector<std::byte> bytes(7);
  CHECK_THROWS_AS(num::store(Dtype::f16, values, bytes), std::logic_error);
  CHECK_THROWS_AS(num::load(Dtype::bf16, bytes, values), std::logic_error);
}

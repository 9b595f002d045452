#include "core/formats/int_codes.hpp"

#include <cstring>
#include <stdexcept>
#include <vector>

#include "tests/catch.hpp"

using namespace kvatlas::num;

namespace {

std::vector<std::uint8_t> some_codes(std::size_t count, int bits, std::uint32_t seed) {
  std::vector<std::uint8_t> codes(count);
  for (auto& c : codes) {
    seed = seed * 1664525U + 1013904223U;
    c = static_cast<std::uint8_t>((seed >> 24) & ((1U << bits) - 1U));
  }
  return codes;
}

/// Bit i of the stream, one at a time.
bool stream_bit(const std::vector<std::byte>& packed, std::size_t i) {
  return ((static_cast<unsigned>(packed[i / 8]) >> (i % 8)) & 1U) != 0;
}

std::vector<std::byte> packed_by_bits(const std::vector<std::uint8_t>& codes, int bits) {
  std::vector<std::byte> out((codes.size() * static_cast<std::size_t>(bits) + 7) / 8, std::byte{0});
  std::size_t at = 0;
  for (const std::uint8_t c : codes)
    for (int b = 0; b < bits; ++b, ++at)
      if (((c >> b) & 1) != 0) out[at / 8] |= static_cast<std::byte>(1U << (at % 8));
  return out;
}

std::vector<unsigned> as_numbers(const std::vector<std::byte>& bytes) {
  std::vector<unsigned> out;
  for (const std::byte b : bytes) out.push_back(static_cast<unsigned>(b));
  return out;
}

}  // namespace

TEST_CASE("packing is a little-endian bit stream at every width and length and round-trips", "[unit]") {
  for (int bits = 1; bits <= 8; ++bits)
    for (const std::size_t count : {0U, 1U, 2U, 3U, 7U, 8U, 9U, 31U, 32U, 33U, 1000U, 1001U}) {
      CAPTURE(bits, count);
      const auto codes = some_codes(count, bits, 7U + static_cast<std::uint32_t>(count));
      const auto bytes = static_cast<std::size_t>(packed_bytes(static_cast<std::int64_t>(count), bits).value);
      REQUIRE(bytes == (count * static_cast<std::size_t>(bits) + 7) / 8);
      std::vector<std::byte> guarded(bytes + 2, std::byte{0xA5});
      pack(codes, bits, std::span(guarded).subspan(1, bytes));
      REQUIRE(guarded.front() == std::byte{0xA5});
      REQUIRE(guarded.back() == std::byte{0xA5});
      const std::vector<std::byte> packed(guarded.begin() + 1, guarded.end() - 1);
      REQUIRE(as_numbers(packed) == as_numbers(packed_by_bits(codes, bits)));
      for (std::size_t i = count * static_cast<std::size_t>(bits); i < bytes * 8; ++i) REQUIRE_FALSE(stream_bit(packed, i));
      std::vector<std::uint8_t> back(count, 0xEE);
      unpack(packed, bits, back);
      REQUIRE(back == codes);
      std::vector<std::uint8_t> exact(bytes);  // code_at must not read past the stream: a sanitizer would see it
      if (bytes > 0) std::memcpy(exact.data(), packed.data(), bytes);
      for (std::size_t i = 0; i < count; ++i)
        REQUIRE(code_at(exact.data(), static_cast<std::int64_t>(i), bits) == codes[i]);
    }
}

TEST_CASE("packing gives the published words", "[unit]") {
  // KIVI: codes [0,2,3,1] at 2 bits are byte 0x78; eight codes are 0x65CA; at 4 bits 0x6C37F0A8.
  std::vector<std::byte> one(1);
  pack(std::vector<std::uint8_t>{0, 2, 3, 1}, 2, one);
  REQUIRE(as_numbers(one) == std::vector<unsigned>{0x78});
  std::vector<std::byte> two(2);
  pack(std::vector<std::uint8_t>{2, 2, 0, 3, 1, 1, 2, 1}, 2, two);
  REQUIRE(as_numbers(two) == std::vector<unsigned>{0xCA, 0x65});
  std::vector<std::byte> four(4);
  pack(std::vector<std::uint8_t>{8, 10, 0, 15, 7, 3, 12, 6}, 4, four);
  REQUIRE(as_numbers(four) == std::vector<unsigned>{0xA8, 0xF0, 0x37, 0x6C});
  REQUIRE(field_of_word(0x6C37F0A8U, 0, 4) == 8);
  REQUIRE(field_of_word(0x6C37F0A8U, 3, 4) == 15);
  REQUIRE(field_of_word(0x6C37F0A8U, 7, 4) == 6);
}

TEST_CASE("3-bit codes cross bytes and words as KVQuant's 32-channel rows do", "[unit]") {
  const auto codes = some_codes(32, 3, 99);
  std::vector<std::byte> packed(12);
  pack(codes, 3, packed);
  std::uint32_t words[3];
  std::memcpy(words, packed.data(), sizeof words);
  for (std::uint32_t l = 0; l < 32; ++l) {
    std::uint32_t code = 0;
    if (l == 10)
      code = (words[0] >> 30) | ((words[1] & 1U) << 2);
    else if (l == 21)
      code = (words[1] >> 31) | ((words[2] & 3U) << 1);
    else
      code = (words[l / 11] >> ((3 * l) % 32)) & 7U;
    REQUIRE(code == codes[l]);
  }
}

TEST_CASE("planar order puts the halves of a block into the nibbles of its bytes", "[unit]") {
  const auto codes = some_codes(32, 4, 5);
  std::vector<std::byte> packed(16);
  pack_planar(codes, 4, packed);
  for (std::size_t j = 0; j < 16; ++j)
    REQUIRE(static_cast<unsigned>(packed[j]) == (unsigned{codes[j]} | (unsigned{codes[j + 16]} << 4)));
  std::vector<std::uint8_t> back(32);
  unpack_planar(packed, 4, back);
  REQUIRE(back == codes);

  const auto twos = some_codes(16, 2, 6);
  std::vector<std::byte> four(4);
  pack_planar(twos, 2, four);
  for (std::size_t j = 0; j < 4; ++j)
    REQUIRE(static_cast<unsigned>(four[j]) == (unsigned{twos[j]} | (unsigned{twos[j + 4]} << 2) |
                                               (unsigned{twos[j + 8]} << 4) | (unsigned{twos[j + 12]} << 6)));
  std::vector<std::uint8_t> twos_back(16);
  unpack_planar(four, 2, twos_back);
  REQUIRE(twos_back == twos);
}

TEST_CASE("packing asserts its sizes and its codes", "[unit]") {
  std::vector<std::byte> out(2);
  CHECK_THROWS_AS(pack(std::vector<std::uint8_t>{1, 2, 3}, 8, out), std::logic_error);
  CHECK_THROWS_AS(pack(std::vector<std::uint8_t>{1, 2, 3, 4}, 9, out), std::logic_error);
  CHECK_THROWS_AS(pack(std::vector<std::uint8_t>{1, 16, 3, 4}, 4, out), std::logic_error);
  CHECK_THROWS_AS(pack_planar(std::vector<std::uint8_t>{1, 2, 3}, 4, out), std::logic_error);
  std::vector<std::uint8_t> codes(3);
  CHECK_THROWS_AS(unpack(out, 8, codes), std::logic_error);
  CHECK_THROWS_AS(unpack_planar(out, 3, codes), std::logic_error);
}

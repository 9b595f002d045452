// Integer codes of 1 to 8 bits in memory. One order serves almost everybody, a little-endian bit stream: element i occupies
// bits [b*i, b*i + b) of the buffer. For widths that divide 32 this is the field order of little-endian 32-bit words (KIVI),
// for 4 bits byte j = code[2j] | code[2j+1] << 4, for 3 bits eight codes in three bytes, for 1 bit byte j bit i = code[8j+i].
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/kv_fn.hpp"
#include "core/units.hpp"

namespace kvatlas::num {

/// Bytes of a stream of `count` codes, its last byte filled with zero bits.
constexpr Bytes packed_bytes(std::int64_t count, int bits) { return to_bytes_ceil(Bits(count * bits)); }

/// Writes the stream. `out` has exactly packed_bytes(codes.size(), bits) bytes; every code is below 2^bits.
void pack(std::span<const std::uint8_t> codes, int bits, std::span<std::byte> out);
/// Reads codes.size() codes of the stream, which has exactly packed_bytes(codes.size(), bits) bytes.
void unpack(std::span<const std::byte> packed, int bits, std::span<std::uint8_t> codes);

/// Planar order of a block of n codes, n a multiple of 8 / bits, bits 1, 2 or 4: byte j holds codes j, j + m, j + 2m, ... from
/// its low end, m = n * bits / 8. Blocks of 32 nibbles are llama.cpp's q4 order, whole rows ZipCache's.
void pack_planar(std::span<const std::uint8_t> codes, int bits, std::span<std::byte> out);
void unpack_planar(std::span<const std::byte> packed, int bits, std::span<std::uint8_t> codes);

/// Code i of a stream, for code that reads single elements. Touches only bytes of the stream that hold the element.
KV_FN inline std::uint32_t code_at(const std::uint8_t* packed, std::int64_t i, int bits) {
  const std::int64_t first_bit = i * bits;
  const int shift = static_cast<int>(first_bit % 8);
  std::uint32_t window = packed[first_bit / 8];
  if (shift + bits > 8) window |= static_cast<std::uint32_t>(packed[first_bit / 8 + 1]) << 8;
  return (window >> shift) & ((1U << bits) - 1U);
}

/// Field i of a 32-bit word, for widths that divide 32.
KV_FN inline std::uint32_t field_of_word(std::uint32_t word, int i, int bits) {
  return (word >> (i * bits)) & ((1U << bits) - 1U);
}

}  // namespace kvatlas::num

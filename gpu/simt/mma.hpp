// The integer tensor-core product m16n8k32 (PTX mma.sync, .s8 and .u8): which lane holds which element, and what it computes.
// Sums are exact in 32 bits and wrap like the instruction without .satfinite.
#pragma once

#include <cstdint>

namespace kvatlas::gpu::mma {

inline constexpr int kRows = 16, kColumns = 8, kDepth = 32;

struct Place {
  int row, column;
};

/// Element i of lane's 16 bytes of A [16, 32], 8 bytes of B [32, 8] and 4 words of C and D [16, 8].
/// source: PTX ISA, "Matrix fragments for mma.m16n8k32" for 8-bit types
constexpr Place place_of_a(int lane, int i) {
  return {lane / 4 + (i / 4 % 2 == 1 ? 8 : 0), lane % 4 * 4 + i % 4 + (i >= 8 ? 16 : 0)};
}
constexpr Place place_of_b(int lane, int i) { return {lane % 4 * 4 + i % 4 + (i >= 4 ? 16 : 0), lane / 4}; }
constexpr Place place_of_c(int lane, int i) { return {lane / 4 + (i >= 2 ? 8 : 0), lane % 4 * 2 + i % 2}; }

/// What one lane brings and takes.
struct Operands {
  std::uint32_t a[4];
  std::uint32_t b[2];
  std::int32_t c[4];
};

constexpr std::int32_t element(const std::uint32_t* words, int i, bool is_signed) {
  const auto byte = static_cast<std::uint8_t>(words[i / 4] >> (i % 4 * 8));
  return is_signed ? static_cast<std::int32_t>(static_cast<std::int8_t>(byte)) : static_cast<std::int32_t>(byte);
}

}  // namespace kvatlas::gpu::mma

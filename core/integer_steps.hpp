// Scalar steps of the exact-integer mode of attention (reference/primitives/integer_attention.hpp), host and device: how a float
// becomes an integer of two 8-bit limbs, and what every limit is. Loops stay where they belong, in the reference and in the kernel.
#pragma once

#include <cstdint>

#include "core/float_ops.hpp"
#include "core/kv_fn.hpp"

namespace kvatlas::num {

/// Largest query code: 127 * 256 + 127, so that both limbs are signed bytes and one kind of product serves both.
inline constexpr std::int32_t kQueryCodes = 32639;
/// Largest weight code: both limbs are unsigned bytes.
inline constexpr std::int32_t kWeightCodes = 65535;
/// A group whose largest factor lies below this counts as zeros: the reciprocal of its step would leave float32.
inline constexpr float kLeastPeak = 0x1p-100F;
/// Tokens of a tile and channels of a head that keep every sum of products within 32 bits.
inline constexpr int kIntegerTileMost = 128, kIntegerDimMost = 256;
static_assert(std::int64_t{kQueryCodes} * 255 * kIntegerDimMost <= 2147483647 && std::int64_t{kWeightCodes} * 255 * kIntegerTileMost <= 2147483647);

/// Step and its reciprocal of codes up to `most` for factors up to `peak`; zeros for a peak that counts as zero.
struct IntegerStep {
  float step = 0.0F, reciprocal = 0.0F;
};
KV_FN inline IntegerStep integer_step(float peak, std::int32_t most) {
  if (peak < kLeastPeak) return {};
  const auto top = static_cast<float>(most);
  return {peak / top, top / peak};
}

/// rint(x * reciprocal), the product not rounded before, in the low 16 bits as two's complement; |product| < 2^21.
KV_FN inline std::uint32_t signed_code_bits(float x, float reciprocal) { return bits_of(num::fma(x, reciprocal, 0x1.8p23F)); }
/// The same without sign: 0 <= product < 2^16.
KV_FN inline std::uint32_t code_bits(float x, float reciprocal) { return bits_of(num::fma(x, reciprocal, 0x1p23F)); }
/// rint(p * 65535) of a softmax weight p in [0, 1], as a float.
KV_FN inline float weight_of(float p) { return num::fma(p, 65535.0F, 0x1p23F) - 0x1p23F; }

/// Limbs of a signed code: code = 256 * high + low, both signed bytes.
KV_FN inline std::int32_t signed_low(std::uint32_t bits) { return static_cast<std::int32_t>(bits << 24) >> 24; }
KV_FN inline std::int32_t signed_high(std::uint32_t bits) { return static_cast<std::int32_t>((bits + 128U) << 16) >> 24; }

/// Bytes of the eight of `low` and `high` (0 to 3 and 4 to 7) that the four digits of the selector name, lowest digit first.
KV_FN inline std::uint32_t permute_bytes(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(low, high, selector);
#else
  const std::uint64_t all = (std::uint64_t{high} << 32) | low;
  std::uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<std::uint32_t>((all >> (8 * ((selector >> (4 * i)) & 7U))) & 0xFFU) << (8 * i);
  return out;
#endif
}

}  // namespace kvatlas::num

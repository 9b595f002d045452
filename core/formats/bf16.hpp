// bfloat16: the upper half of a float32; 1 sign, 8 exponent, 7 mantissa bits.
#pragma once

#include <cstdint>

#include "core/arith.hpp"
#include "core/kv_fn.hpp"

namespace kvatlas::num {

/// Nearest even; overflow gives infinity. A NaN stays one: sign and upper payload kept, quiet.
KV_FN inline std::uint16_t encode_bf16(float x) {
  const std::uint32_t u = bits_of(x);
  const std::uint32_t quiet = (u >> 16) | 0x0040U;
  const std::uint32_t rounded = (u + 0x7FFFU + ((u >> 16) & 1U)) >> 16;
  return static_cast<std::uint16_t>((u & 0x7FFFFFFFU) > 0x7F800000U ? quiet : rounded);
}

/// Exact, NaN payloads included.
KV_FN inline float decode_bf16(std::uint16_t code) { return float_of(static_cast<std::uint32_t>(code) << 16); }

}  // namespace kvatlas::num

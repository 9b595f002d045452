// IEEE binary16: 1 sign, 5 exponent, 10 mantissa bits, bias 15; largest finite 65504, smallest subnormal 2^-24.
#pragma once

#include <cstdint>

#include "core/arith.hpp"
#include "core/formats/small_float.hpp"
#include "core/kv_fn.hpp"

namespace kvatlas::num {

/// Nearest even; from 65520 on infinity. A NaN stays one: sign and upper payload kept, quiet, as x86 converts it.
KV_FN inline std::uint16_t encode_fp16(float x) {
  const std::uint32_t u = bits_of(x);
  const std::uint32_t sign = (u >> 16) & 0x8000U;
  const std::uint32_t magnitude = u & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<std::uint16_t>(sign | 0x7E00U | ((magnitude >> 13) & 0x03FFU));
  const std::uint32_t code = detail::round_magnitude<10, 15>(magnitude);
  return static_cast<std::uint16_t>(sign | (code > 0x7C00U ? 0x7C00U : code));
}

/// Exact. A signalling NaN becomes quiet.
KV_FN inline float decode_fp16(std::uint16_t code) {
  const std::uint32_t sign = (code & 0x8000U) << 16;
  const std::uint32_t magnitude = code & 0x7FFFU;
  if (magnitude >= 0x7C00U) {
    const std::uint32_t payload = (magnitude & 0x03FFU) << 13;
    return float_of(sign | 0x7F800000U | (payload != 0 ? payload | 0x00400000U : 0U));
  }
  return float_of(sign | detail::widen_magnitude<10, 15>(magnitude));
}

}  // namespace kvatlas::num

// E8M0, the block scale of the MX formats: code c means 2^(c - 127), 0xFF means NaN; there is no zero and no sign.
#pragma once

#include <cstdint>

#include "core/arith.hpp"
#include "core/kv_fn.hpp"

namespace kvatlas::num {

/// Exact; 0x00 is the float32 subnormal 2^-127.
KV_FN inline float decode_e8m0(std::uint8_t code) {
  if (code == 0xFFU) return quiet_nan();
  return float_of(code == 0 ? 0x00400000U : static_cast<std::uint32_t>(code) << 23);
}

namespace detail {
/// x = significand * 2^(exponent - 23) with significand in [2^23, 2^24), for finite x > 0.
struct Parts {
  std::int32_t exponent;
  std::uint32_t significand;
};
KV_FN inline Parts parts_of(float x) {
  const std::uint32_t u = bits_of(x);
  std::int32_t exponent = static_cast<std::int32_t>(u >> 23) - 127;
  std::uint32_t significand = (u & 0x007FFFFFU) | 0x00800000U;
  if (exponent == -127) {
    exponent = -126;
    significand = u & 0x007FFFFFU;
    while (significand < 0x00800000U) {
      significand <<= 1;
      --exponent;
    }
  }
  return {exponent, significand};
}
KV_FN inline std::uint8_t e8m0_of_exponent(std::int32_t exponent) {
  const std::int32_t code = exponent + 127;
  return static_cast<std::uint8_t>(code < 0 ? 0 : code > 254 ? 254 : code);
}
}  // namespace detail

/// The two rules for the scale of a block whose largest magnitude is `amax` >= 0 and whose element format reaches
/// `element_max` (6 for E2M1, 448 for E4M3, 57344 for E5M2). Both give 0x00 for amax = 0, 0xFF for infinity and NaN, and clamp
/// the exponent to [-127, 127].
///
/// OCP rule: floor(log2(amax)) - floor(log2(element_max)). Elements may saturate afterwards.
KV_FN inline std::uint8_t e8m0_scale_floor(float amax, float element_max) {
  if (!is_finite(amax)) return 0xFFU;
  if (amax <= 0.0F) return 0x00U;
  return detail::e8m0_of_exponent(detail::parts_of(amax).exponent - detail::parts_of(element_max).exponent);
}
/// Round-up rule: ceil(log2(amax / element_max)), of the exact quotient. No element saturates, unless the clamp acts.
KV_FN inline std::uint8_t e8m0_scale_round_up(float amax, float element_max) {
  if (!is_finite(amax)) return 0xFFU;
  if (amax <= 0.0F) return 0x00U;
  const detail::Parts a = detail::parts_of(amax);
  const detail::Parts m = detail::parts_of(element_max);
  return detail::e8m0_of_exponent(a.exponent - m.exponent + (a.significand > m.significand ? 1 : 0));
}

}  // namespace kvatlas::num

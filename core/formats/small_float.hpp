// Rounding of a float32 magnitude to a narrower binary format, in integers; shared by the float formats of this folder.
#pragma once

#include <cstdint>

#include "core/kv_fn.hpp"

namespace kvatlas::num::detail {

/// The magnitude whose bits are `magnitude` (sign cleared, not NaN), rounded to nearest even with MantissaBits and exponent
/// bias Bias, subnormals included. The result continues past the largest finite code as if exponents had no end, so the
/// caller compares it with its own largest code; only infinity and magnitudes far above need no exact answer.
template <int MantissaBits, int Bias>
KV_FN inline std::uint32_t round_magnitude(std::uint32_t magnitude) {
  static_assert(MantissaBits >= 0 && MantissaBits < 23 && Bias > 0 && Bias < 127);
  constexpr std::uint32_t kDropped = 23U - static_cast<std::uint32_t>(MantissaBits);
  constexpr std::uint32_t kSmallestNormal = static_cast<std::uint32_t>(128 - Bias) << 23;
  if (magnitude >= kSmallestNormal) {
    const std::uint32_t to_even = (magnitude >> kDropped) & 1U;
    const std::uint32_t rounded = (magnitude + (1U << (kDropped - 1U)) - 1U + to_even) >> kDropped;
    return rounded - (static_cast<std::uint32_t>(127 - Bias) << MantissaBits);
  }
  // Below the smallest normal the code counts units of 2^(1 - Bias - MantissaBits).
  constexpr std::uint32_t kUnit = static_cast<std::uint32_t>(151 - Bias - MantissaBits);
  const std::uint32_t exponent = magnitude >> 23;  // 0 for a float32 subnormal: far below every unit, gives 0
  const std::uint32_t shift = kUnit - exponent;
  if (exponent == 0 || shift > 24U) return 0;      // less than half a unit
  const std::uint32_t significand = (magnitude & 0x007FFFFFU) | 0x00800000U;
  const std::uint32_t to_even = (significand >> shift) & 1U;
  return (significand + (1U << (shift - 1U)) - 1U + to_even) >> shift;
}

/// Bits of the float32 that a magnitude code means; every code of these formats is a normal float32 or zero.
template <int MantissaBits, int Bias>
KV_FN inline std::uint32_t widen_magnitude(std::uint32_t code) {
  constexpr std::uint32_t kDropped = 23U - static_cast<std::uint32_t>(MantissaBits);
  std::uint32_t exponent = code >> MantissaBits;
  std::uint32_t mantissa = code & ((1U << MantissaBits) - 1U);
  if (exponent == 0) {
    if (mantissa == 0) return 0;
    exponent = 1;
    while ((mantissa >> MantissaBits) == 0) {  // exponent may pass below 0: unsigned wrap, undone by the sum below
      mantissa <<= 1;
      --exponent;
    }
    mantissa &= (1U << MantissaBits) - 1U;
  }
  return ((exponent + static_cast<std::uint32_t>(127 - Bias)) << 23) | (mantissa << kDropped);
}

}  // namespace kvatlas::num::detail

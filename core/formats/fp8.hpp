// The 8-bit floats of KV caches: E4M3 ("fn": no infinity, one NaN a sign), E5M2, and UE4M3, the block scale of NVFP4.
// Conversions from float32 round to nearest even and saturate: anything above the largest finite value, infinity included,
// becomes that value with its sign. NaN becomes 0x7F whatever its sign, as the hardware conversion writes it.
#pragma once

#include <cstdint>

#include "core/arith.hpp"
#include "core/formats/small_float.hpp"
#include "core/kv_fn.hpp"

namespace kvatlas::num {

/// 1 sign, 4 exponent, 3 mantissa bits, bias 7; largest 448 = 0x7E, smallest 2^-9.
KV_FN inline std::uint8_t encode_e4m3(float x) {
  if (is_nan(x)) return 0x7FU;
  const std::uint32_t u = bits_of(x);
  const std::uint32_t code = detail::round_magnitude<3, 7>(u & 0x7FFFFFFFU);
  return static_cast<std::uint8_t>(((u >> 24) & 0x80U) | (code > 0x7EU ? 0x7EU : code));
}
KV_FN inline float decode_e4m3(std::uint8_t code) {
  const std::uint32_t sign = (code & 0x80U) << 24;
  const std::uint32_t magnitude = code & 0x7FU;
  if (magnitude == 0x7FU) return float_of(sign | 0x7FC00000U);
  return float_of(sign | detail::widen_magnitude<3, 7>(magnitude));
}

/// 1 sign, 5 exponent, 2 mantissa bits, bias 15; largest finite 57344 = 0x7B, smallest 2^-16; 0x7C is infinity and is
/// never produced.
KV_FN inline std::uint8_t encode_e5m2(float x) {
  if (is_nan(x)) return 0x7FU;
  const std::uint32_t u = bits_of(x);
  const std::uint32_t code = detail::round_magnitude<2, 15>(u & 0x7FFFFFFFU);
  return static_cast<std::uint8_t>(((u >> 24) & 0x80U) | (code > 0x7BU ? 0x7BU : code));
}
KV_FN inline float decode_e5m2(std::uint8_t code) {
  const std::uint32_t sign = (code & 0x80U) << 24;
  const std::uint32_t magnitude = code & 0x7FU;
  if (magnitude >= 0x7CU) return float_of(sign | (magnitude == 0x7CU ? 0x7F800000U : 0x7FC00000U));
  return float_of(sign | detail::widen_magnitude<2, 15>(magnitude));
}

/// E4M3 without its sign: 0x00 to 0x7E, 0x7F is NaN. A negative input, which no block scale is, gives 0.
KV_FN inline std::uint8_t encode_ue4m3(float x) { return x <= 0.0F ? std::uint8_t{0} : encode_e4m3(x); }
/// The top bit of the code is not part of the format and is ignored.
KV_FN inline float decode_ue4m3(std::uint8_t code) { return decode_e4m3(static_cast<std::uint8_t>(code & 0x7FU)); }

}  // namespace kvatlas::num

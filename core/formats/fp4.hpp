// E2M1, the 4-bit float: codes 0 to 7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6, code | 8 the negatives; no infinity, no NaN.
#pragma once

#include <cstdint>

#include "core/arith.hpp"
#include "core/formats/small_float.hpp"
#include "core/kv_fn.hpp"

namespace kvatlas::num {

/// Nearest even; magnitudes above 5 give 6 with their sign. NaN has no code: it gives +6, as the hardware conversion does,
/// so a quantizer refuses NaN before it comes here.
KV_FN inline std::uint8_t encode_e2m1(float x) {
  if (is_nan(x)) return 0x7U;
  const std::uint32_t u = bits_of(x);
  const std::uint32_t code = detail::round_magnitude<1, 1>(u & 0x7FFFFFFFU);
  return static_cast<std::uint8_t>(((u >> 28) & 0x8U) | (code > 0x7U ? 0x7U : code));
}

/// Exact; the upper four bits of the code are ignored.
KV_FN inline float decode_e2m1(std::uint8_t code) {
  const std::uint32_t sign = (code & 0x8U) << 28;
  return float_of(sign | detail::widen_magnitude<1, 1>(code & 0x7U));
}

}  // namespace kvatlas::num

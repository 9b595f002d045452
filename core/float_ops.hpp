// Single float32 operations that host and device must round alike: bits, fma, rint, rsqrt, min, max, clamp.
// Included by core/arith.hpp; needs -ffp-contract=off (nvcc: --fmad=false) and round-to-nearest mode.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/kv_fn.hpp"

namespace kvatlas::num {

/// The bits of a float, and back.
KV_FN inline std::uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return std::bit_cast<std::uint32_t>(x);
#endif
}
KV_FN inline float float_of(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}
KV_FN inline bool is_nan(float x) { return (bits_of(x) & 0x7FFFFFFFU) > 0x7F800000U; }
KV_FN inline bool is_finite(float x) { return (bits_of(x) & 0x7F800000U) != 0x7F800000U; }
KV_FN inline float infinity() { return float_of(0x7F800000U); }
KV_FN inline float quiet_nan() { return float_of(0x7FC00000U); }

/// a * b + c with one rounding; the only way in which a product and a sum are fused.
KV_FN inline float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

/// The nearest integer, ties to even; keeps the sign of zero, infinities and NaN.
KV_FN inline float rint(float x) {
#if defined(__CUDA_ARCH__)
  return ::rintf(x);
#else
  return std::rint(x);
#endif
}

/// 1 / sqrt(x): two correctly rounded steps, which every machine has; not the one-step approximation.
KV_FN inline float rsqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(1.0F, __fsqrt_rn(x));
#else
  return 1.0F / std::sqrt(x);
#endif
}

/// The first argument wins when the two compare equal or unordered, so min(-0, +0) is -0 and max(NaN, x) is NaN.
KV_FN inline float min(float a, float b) { return b < a ? b : a; }
KV_FN inline float max(float a, float b) { return a < b ? b : a; }
/// x inside [low, high]; NaN stays NaN.
KV_FN inline float clamp(float x, float low, float high) { return x < low ? low : high < x ? high : x; }

}  // namespace kvatlas::num

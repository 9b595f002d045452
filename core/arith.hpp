// Canonical float32 arithmetic, host and device: what a reference and a kernel both compute goes through these functions,
// so that both end in the same bits. Needs -ffp-contract=off (nvcc: --fmad=false) and round-to-nearest mode.
#pragma once

#include <cstdint>
#include <span>

#include "core/arith_sums.hpp"  // IWYU pragma: export
#include "core/float_ops.hpp"   // IWYU pragma: export
#include "core/kv_fn.hpp"

namespace kvatlas::num {

/// 2^x. At most 0.94 ulp from the true value, exact at integers, never above 1 for x <= 0.
/// 0 below -126 (results are normal or zero), +inf from 128 on, NaN for NaN.
KV_FN inline float exp2(float x) {
  if (is_nan(x)) return x;
  if (x < -126.0F) return 0.0F;
  if (x >= 128.0F) return infinity();
  const float n = num::rint(x);
  const float f = x - n;  // exact, |f| <= 1/2
  float p = 0x1.41fbbcp-13F;  // relative minimax on [-1/2, 1/2] with p(0) = 1
  p = num::fma(p, f, 0x1.5f3e54p-10F);
  p = num::fma(p, f, 0x1.3b2d4cp-7F);
  p = num::fma(p, f, 0x1.c6aee8p-5F);
  p = num::fma(p, f, 0x1.ebfbdcp-3F);
  p = num::fma(p, f, 0x1.62e430p-1F);
  p = num::fma(p, f, 1.0F);
  return float_of(bits_of(p) + (static_cast<std::uint32_t>(static_cast<std::int32_t>(n)) << 23));
}

/// log2(x), subnormals included. At most 1.01 ulp from the true value, exact at powers of two, never decreasing.
/// -inf for 0 of either sign, NaN for negative x and NaN, +inf for +inf.
KV_FN inline float log2(float x) {
  if (is_nan(x) || x == infinity()) return x;
  if (x == 0.0F) return -infinity();
  if (x < 0.0F) return quiet_nan();
  std::int32_t exponent = 0;
  if (x < 0x1p-126F) {  // exact
    x = x * 0x1p23F;
    exponent = -23;
  }
  // Split x = 2^exponent * m with m in [sqrt(1/2), sqrt(2)): subtracting the bits of sqrt(1/2) moves the border of binades.
  constexpr std::uint32_t kRootHalf = 0x3F3504F3U;
  const std::uint32_t shifted = bits_of(x) - kRootHalf;
  exponent += static_cast<std::int32_t>(shifted) >> 23;
  const float f = float_of((shifted & 0x007FFFFFU) + kRootHalf) - 1.0F;  // exact
  float q = -0x1.c3c4d6p-4F;  // relative minimax on [sqrt(1/2) - 1, sqrt(2) - 1]
  q = num::fma(q, f, 0x1.7dcd52p-3F);
  q = num::fma(q, f, -0x1.8746b2p-3F);
  q = num::fma(q, f, 0x1.a2f1fcp-3F);
  q = num::fma(q, f, -0x1.eabad4p-3F);
  q = num::fma(q, f, 0x1.277eacp-2F);
  q = num::fma(q, f, -0x1.715a82p-2F);
  q = num::fma(q, f, 0x1.ec7094p-2F);
  q = num::fma(q, f, -0x1.715470p-1F);
  // log2(1+f) = f * log2(e) + f^2 * q(f); log2(e) as a sum of two floats.
  const float tail = num::fma(f, 0x1.4ae0c0p-26F, f * f * q);
  if (exponent == 0) return num::fma(f, 0x1.715476p+0F, tail);
  return static_cast<float>(exponent) + num::fma(f, 0x1.715476p+0F, tail);
}

/// The largest element; -inf of nothing. Order-free: a zero result is +0, and NaN is the caller's error.
KV_FN inline float max_of(const float* x, std::int64_t n) {
  float best = -infinity();
  for (std::int64_t i = 0; i < n; ++i) best = num::max(best, x[i]);
  return best == 0.0F ? 0.0F : best;
}
inline float max_of(std::span<const float> x) { return max_of(x.data(), static_cast<std::int64_t>(x.size())); }

/// Total order of selection: of two keys the greater one is kept first. Higher score first, then lower index; -0 equals +0.
/// NaN has no place in the order: refuse it before.
KV_FN inline std::uint64_t selection_key(float score, std::uint32_t index) {
  const std::uint32_t u = bits_of(score == 0.0F ? 0.0F : score);
  const std::uint32_t ordered = (u & 0x80000000U) != 0 ? ~u : u | 0x80000000U;
  return (static_cast<std::uint64_t>(ordered) << 32) | static_cast<std::uint64_t>(static_cast<std::uint32_t>(~index));
}
KV_FN inline std::uint32_t index_of_key(std::uint64_t key) { return ~static_cast<std::uint32_t>(key); }

/// Attention mass in fixed point, so that no order of summation can matter: p in [0, 1] becomes rint(p * 2^31).
/// Headroom: a 64-bit total holds 2^33 probabilities of 1; a total that stands for at most 2^33 - 1 never wraps.
KV_FN inline std::uint64_t to_mass(float p) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(num::rint(p * 0x1p31F)));
}
/// The float nearest to mass / 2^31, ties to even.
KV_FN inline float from_mass(std::uint64_t mass) {
#if defined(__CUDA_ARCH__)
  return __ull2float_rn(mass) * 0x1p-31F;
#else
  return static_cast<float>(mass) * 0x1p-31F;
#endif
}

}  // namespace kvatlas::num

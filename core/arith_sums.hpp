// Sums in canonical order: the lane tree and the order of q.k. Included by core/arith.hpp; include that one.
#pragma once

#include <cstdint>
#include <span>

#include "core/arith_wide.hpp"
#include "core/float_ops.hpp"
#include "core/kv_fn.hpp"

namespace kvatlas::num {

/// The definitions, one operation at a time; the wide forms below give the same bits.
namespace scalar {

/// lane[l] = lane[l] + lane[l ^ distance] for distance lanes / 2, ..., 2, 1, as lane 0 sees it.
KV_FN inline float butterfly(float* lane, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2)
    for (int l = 0; l < distance; ++l) lane[l] = lane[l] + lane[l + distance];
  return lane[0];
}

KV_FN inline float lane_sum(const float* x, std::int64_t n) {
  float lane[32] = {};
  for (std::int64_t i = 0; i < n; ++i) lane[i % 32] = lane[i % 32] + x[i];
  return butterfly(lane, 32);
}

KV_FN inline float lane_dot(const float* a, const float* b, std::int64_t n) {
  float lane[32] = {};
  for (std::int64_t i = 0; i < n; ++i) lane[i % 32] = num::fma(a[i], b[i], lane[i % 32]);
  return butterfly(lane, 32);
}

KV_FN inline float qk_dot(const float* q, const float* k, int n) {
  float lane[8] = {};
  for (int i = 0; i < n; ++i) lane[(i / 8) % 8] = num::fma(q[i], k[i], lane[(i / 8) % 8]);
  return butterfly(lane, 8);
}

}  // namespace scalar

/// Sum of x[0..n): element i belongs to lane i mod 32, each lane adds in increasing i from 0, then butterflies at distance
/// 16, 8, 4, 2, 1 (own + other). An empty sum is +0.
KV_FN inline float lane_sum(const float* x, std::int64_t n) {
#if defined(KV_WIDE_SUMS)
  return wide::lane_sum(x, n);
#else
  return scalar::lane_sum(x, n);
#endif
}

/// Dot product in the order of lane_sum, each lane accumulating with fma.
KV_FN inline float lane_dot(const float* a, const float* b, std::int64_t n) {
#if defined(KV_WIDE_SUMS)
  return wide::lane_dot(a, b, n);
#else
  return scalar::lane_dot(a, b, n);
#endif
}

/// The product q.k of two head vectors: 8 lanes, element i belongs to lane (i / 8) mod 8, each lane accumulates with fma in
/// increasing i from 0, then butterflies at distance 4, 2, 1. Eight neighbouring channels are one wide load of a kernel.
KV_FN inline float qk_dot(const float* q, const float* k, int n) {
#if defined(KV_WIDE_SUMS)
  return wide::qk_dot(q, k, n);
#else
  return scalar::qk_dot(q, k, n);
#endif
}

/// out[r] = qk_dot(q, k_rows + r * stride, n) for each of `rows` keys, to the bit and much faster than one key at a time.
KV_FN inline void qk_dot_rows(const float* q, const float* k_rows, std::int64_t stride, std::int64_t rows, int n, float* out) {
#if defined(KV_WIDE_SUMS)
  wide::qk_dot_rows(q, k_rows, stride, rows, n, out);
#else
  for (std::int64_t r = 0; r < rows; ++r) out[r] = scalar::qk_dot(q, k_rows + r * stride, n);
#endif
}

inline float lane_sum(std::span<const float> x) { return lane_sum(x.data(), static_cast<std::int64_t>(x.size())); }
/// The spans have one length; the first one's is used.
inline float lane_dot(std::span<const float> a, std::span<const float> b) {
  return lane_dot(a.data(), b.data(), static_cast<std::int64_t>(a.size()));
}
inline float qk_dot(std::span<const float> q, std::span<const float> k) {
  return qk_dot(q.data(), k.data(), static_cast<int>(q.size()));
}

}  // namespace kvatlas::num

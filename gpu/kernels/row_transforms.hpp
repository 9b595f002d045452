// Transforms of rows in place, a warp a row: the Hadamard transform of each block of channels, and rotary embedding.
// Orders of operations: reference/primitives/rotation.hpp and core/rope.hpp.
#pragma once

#include "gpu/kernels/coding.hpp"

namespace kvatlas::gpu {

struct RowShape {
  int dim;       // 64, 128 or 256
  int block;     // of the Hadamard transform: a power of two that divides dim
  Dtype dtype;
  KV_FN constexpr int of_lane() const { return dim / 32; }
};
inline constexpr int kRowThreads = 128;

template <class C>
struct RowArgs {
  template <class T>
  using Global = typename C::template Global<T>;
  Global<std::uint16_t> rows;         // [heads][tokens][dim]
  std::int64_t heads = 1, tokens = 0;
  float factor = 1.0F;                // Hadamard: 1 / sqrt(block), rounded once
  Global<const std::int32_t> positions;  // RoPE: [tokens]
  Global<const float> cos, sin;          // RoPE: [positions][dim / 2]; for the inverse those of the inverse rotation
};

/// grid (rows / 4 rounded up), kRowThreads threads. Lane l holds channels l * dim / 32 and its neighbours: butterflies of
/// short distance stay in the lane, the others are shuffles.
template <RowShape S, class C>
KV_KERNEL void hadamard_rows(C& c, const RowArgs<C>& a) {
  constexpr int kOwn = S.of_lane();
  const std::int64_t row = c.block_x() * (kRowThreads / 32) + c.warp();
  if (row >= a.heads * a.tokens) return;
  const auto place = C::template global_as<Vec<std::uint16_t, kOwn>>(a.rows + row * S.dim);
  const Vec<std::uint16_t, kOwn> bits = c.ld(place, c.lane());
  float x[kOwn];
  KV_UNROLL
  for (int j = 0; j < kOwn; ++j) x[j] = load16<C, S.dtype>(bits.v[j]);
  KV_UNROLL
  for (int distance = 1; distance < S.block; distance *= 2) {
    if (distance < kOwn) {
      KV_UNROLL
      for (int j = 0; j < kOwn; ++j) {
        if ((j & distance) != 0) continue;
        const float low = x[j], high = x[j + distance];
        x[j] = low + high;
        x[j + distance] = low - high;
      }
    } else {
      const int lanes = distance / kOwn;
      KV_UNROLL
      for (int j = 0; j < kOwn; ++j) {
        const float there = c.shfl_xor(kFullMask, x[j], lanes);
        x[j] = (c.lane() & lanes) == 0 ? x[j] + there : there - x[j];
      }
    }
  }
  Vec<std::uint16_t, kOwn> out;
  KV_UNROLL
  for (int j = 0; j < kOwn; ++j) out.v[j] = store16<C, S.dtype>(x[j] * a.factor);
  c.st(place, c.lane(), out);
}

/// grid (rows / 4 rounded up), kRowThreads threads. Half-split pairs (i, i + dim / 2); a lane owns dim / 64 pairs.
template <RowShape S, class C>
KV_KERNEL void rope_rows(C& c, const RowArgs<C>& a) {
  constexpr int kPairs = S.dim / 64;
  using Bits = Vec<std::uint16_t, kPairs>;
  const std::int64_t row = c.block_x() * (kRowThreads / 32) + c.warp();
  if (row >= a.heads * a.tokens) return;
  const std::int64_t position = c.ld_nc(a.positions, row % a.tokens);
  const auto first = C::template global_as<Bits>(a.rows + row * S.dim);
  const auto second = C::template global_as<Bits>(a.rows + (row * S.dim + S.dim / 2));
  const Vec<float, kPairs> cos = c.ld_nc(C::template global_as<const Vec<float, kPairs>>(a.cos + position * (S.dim / 2)), c.lane());
  const Vec<float, kPairs> sin = c.ld_nc(C::template global_as<const Vec<float, kPairs>>(a.sin + position * (S.dim / 2)), c.lane());
  const Bits x = c.ld(first, c.lane());
  const Bits y = c.ld(second, c.lane());
  Bits out_x, out_y;
  KV_UNROLL
  for (int j = 0; j < kPairs; ++j) {
    const float p = load16<C, S.dtype>(x.v[j]), q = load16<C, S.dtype>(y.v[j]);
    out_x.v[j] = store16<C, S.dtype>(p * cos.v[j] - q * sin.v[j]);
    out_y.v[j] = store16<C, S.dtype>(q * cos.v[j] + p * sin.v[j]);
  }
  c.st(first, c.lane(), out_x);
  c.st(second, c.lane(), out_y);
}

}  // namespace kvatlas::gpu

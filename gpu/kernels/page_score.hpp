// page_score: upper bounds of q.k for every page of a cache from the page's channel-wise maximum and minimum (Quest), for all
// query heads of a group. Eight lanes serve a page, in the order of num::qk_dot over s_i = maximum where q_i > 0, else minimum.
#pragma once

#include "gpu/kernels/coding.hpp"

namespace kvatlas::gpu {

struct PageScoreShape {
  int dim;  // 64, 128 or 256
  int q_per_kv;
  Dtype dtype;
};
inline constexpr int kPageScoreThreads = 128;
inline constexpr int kPagesOfBlock = kPageScoreThreads / 8;

template <class C>
struct PageScoreArgs {
  template <class T>
  using Global = typename C::template Global<T>;
  Global<const std::uint16_t> bounds;  // [heads][pages][2][dim]: maximum, minimum
  Global<const std::uint16_t> q;       // [heads * q_per_kv][dim]
  Global<float> scores;                // [heads * q_per_kv][pages]
  std::int64_t pages = 0;
};

/// grid (pages / 16 rounded up, heads), kPageScoreThreads threads.
template <PageScoreShape S, class C>
KV_KERNEL void page_score(C& c, const PageScoreArgs<C>& a) {
  using Eight = Vec<std::uint16_t, 8>;
  const std::int64_t head = c.block_y(), page = c.block_x() * kPagesOfBlock + c.thread() / 8;
  const int lane = c.thread() % 8;
  const bool there = page < a.pages;
  float dot[S.q_per_kv] = {};
  KV_UNROLL
  for (int chunk = 0; chunk < S.dim / 64; ++chunk) {
    const int eighth = chunk * 8 + lane;
    float high[8] = {}, low[8] = {};
    if (there) {
      const auto rows = C::template global_as<const Eight>(a.bounds + (head * a.pages + page) * 2 * S.dim);
      const Eight maximum = c.ld_nc(rows, eighth);
      const Eight minimum = c.ld_nc(rows, S.dim / 8 + eighth);
      KV_UNROLL
      for (int j = 0; j < 8; ++j) {
        high[j] = load16<C, S.dtype>(maximum.v[j]);
        low[j] = load16<C, S.dtype>(minimum.v[j]);
      }
    }
    c.sync_warp();
    KV_UNROLL
    for (int g = 0; g < S.q_per_kv; ++g) {
      const Eight query = c.ld_nc(C::template global_as<const Eight>(a.q + (head * S.q_per_kv + g) * S.dim), eighth);
      KV_UNROLL
      for (int j = 0; j < 8; ++j) {
        const float x = load16<C, S.dtype>(query.v[j]);
        dot[g] = num::fma(x, x > 0.0F ? high[j] : low[j], dot[g]);
      }
    }
  }
  KV_UNROLL
  for (int g = 0; g < S.q_per_kv; ++g) {
    float s = dot[g];
    KV_UNROLL
    for (int d = 4; d > 0; d /= 2) s = s + c.shfl_xor(kFullMask, s, d, 8);
    if (there && lane == 0) c.st(a.scores, (head * S.q_per_kv + g) * a.pages + page, s);
  }
}

}  // namespace kvatlas::gpu

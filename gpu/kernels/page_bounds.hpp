// page_bounds: channel-wise maximum and minimum of every page's keys, as page_score reads them (Quest). A warp serves a page of one
// head: its lanes hold 8 channels each, and groups of lanes that cover a row have runs of rows, so that of equal values (zeros of both
// signs) the last row's stays whatever the width.
#pragma once

#include "gpu/kernels/coding.hpp"

namespace kvatlas::gpu {

struct PageBoundsShape {
  int dim;  // 64, 128 or 256
  Dtype dtype;
  KV_FN constexpr int runs() const { return 256 / dim; }
};
inline constexpr int kPageBoundsThreads = 128;
inline constexpr int kPageBoundsWarps = kPageBoundsThreads / 32;

template <class C>
struct PageBoundsArgs {
  template <class T>
  using Global = typename C::template Global<T>;
  Global<const std::uint16_t> k;      // row t of page p of head h: table[p] * page_stride + h * head_stride + t * dim
  Global<const std::int32_t> table;   // [pages]
  Global<std::uint16_t> bounds;       // [heads][page_capacity][2][dim]: maximum, minimum
  std::int64_t page_stride = 0, head_stride = 0;  // elements
  std::int64_t page = 16;             // tokens
  std::int64_t context = 0;           // tokens; the last page may be open
  std::int64_t first = 0;             // first page to bound: those before it have their bounds already
  std::int64_t page_capacity = 0;
};

/// grid ((pages - first) / 4 rounded up, heads), kPageBoundsThreads threads.
template <PageBoundsShape S, class C>
KV_KERNEL void page_bounds(C& c, const PageBoundsArgs<C>& a) {
  using Eight = Vec<std::uint16_t, 8>;
  constexpr int kLanes = S.dim / 8;
  const std::int64_t head = c.block_y(), page = a.first + c.block_x() * kPageBoundsWarps + c.warp();
  const std::int64_t left = a.context - page * a.page;
  const int rows = static_cast<int>(left < a.page ? left : a.page);
  if (rows <= 0) return;
  const int of_run = (rows + S.runs() - 1) / S.runs();
  const int begin = c.lane() / kLanes * of_run, end = begin + of_run < rows ? begin + of_run : rows;
  const std::int64_t place = c.ld_nc(a.table, page);
  const auto k = C::template global_as<const Eight>(a.k + (place * a.page_stride + head * a.head_stride));
  float high[8], low[8];
  KV_UNROLL
  for (int j = 0; j < 8; ++j) {
    high[j] = -num::infinity();
    low[j] = num::infinity();
  }
  for (int t = begin; t < end; ++t) {
    const Eight bits = c.ld_nc(k, std::int64_t{t} * kLanes + c.lane() % kLanes);
    KV_UNROLL
    for (int j = 0; j < 8; ++j) {
      const float x = load16<C, S.dtype>(bits.v[j]);
      high[j] = num::max(x, high[j]);
      low[j] = num::min(x, low[j]);
    }
  }
  c.sync_warp();
  KV_UNROLL
  for (int d = kLanes; d < 32; d *= 2) {
    const bool later = (c.lane() & d) != 0;
    KV_UNROLL
    for (int j = 0; j < 8; ++j) {
      const float high_there = c.shfl_xor(kFullMask, high[j], d);
      const float low_there = c.shfl_xor(kFullMask, low[j], d);
      high[j] = later ? num::max(high[j], high_there) : num::max(high_there, high[j]);
      low[j] = later ? num::min(low[j], low_there) : num::min(low_there, low[j]);
    }
  }
  const auto bounds = C::template global_as<Eight>(a.bounds + (head * a.page_capacity + page) * 2 * S.dim);
  KV_UNROLL
  for (int unit = 0; unit < 2 * kLanes; unit += 32) {
    const int at = unit + c.lane();
    Eight bits;
    KV_UNROLL
    for (int j = 0; j < 8; ++j) bits.v[j] = store16<C, S.dtype>(at < kLanes ? high[j] : low[j]);
    if (at < 2 * kLanes) c.st(bounds, at, bits);
  }
}

}  // namespace kvatlas::gpu

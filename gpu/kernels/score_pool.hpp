// score_pool: each score becomes the mean or the largest of a window of neighbours (reference/primitives/pooling.hpp). A block stages
// its scores and half a window on both sides, padded beyond the ends with what changes nothing.
#pragma once

#include "core/arith.hpp"
#include "gpu/simt/site.hpp"

namespace kvatlas::gpu {

inline constexpr int kPoolThreads = 128;

struct PoolShape {
  bool average;  // else the largest
};
constexpr std::int64_t pool_shared_bytes(int width) { return std::int64_t{kPoolThreads + width} * 4; }

template <class C>
struct PoolArgs {
  template <class T>
  using Global = typename C::template Global<T>;
  Global<const float> scores;  // [rows][stride]
  Global<float> pooled;        // [rows][stride]
  std::int64_t tokens = 0, stride = 0;
  int width = 1;               // odd, at most 255
};

/// grid (tokens / 128 rounded up, rows), kPoolThreads threads.
template <PoolShape S, class C>
KV_KERNEL void score_pool(C& c, const PoolArgs<C>& a) {
  const auto near = c.template shared<float>(kPoolThreads + a.width);
  const std::int64_t row = c.block_y() * a.stride, first = c.block_x() * kPoolThreads;
  const int half = a.width / 2;
  for (int round = 0; round < kPoolThreads + 2 * half; round += kPoolThreads) {
    const int i = round + c.thread();
    const std::int64_t token = first - half + i;
    float x = S.average ? 0.0F : -num::infinity();
    if (i < kPoolThreads + 2 * half && token >= 0 && token < a.tokens) x = c.ld_nc(a.scores, row + token);
    if (i < kPoolThreads + 2 * half) c.st_shared(near, i, x);
    c.sync_warp();
  }
  c.sync_block();
  float value = S.average ? 0.0F : -num::infinity();
  for (int j = 0; j < a.width; ++j) {
    const float s = c.ld_shared(near, c.thread() + j);
    value = S.average ? value + s : num::max(value, s);
  }
  if (first + c.thread() < a.tokens) c.st(a.pooled, row + first + c.thread(), S.average ? value / static_cast<float>(a.width) : value);
}

}  // namespace kvatlas::gpu

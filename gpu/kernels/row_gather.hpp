// row_gather: compacts a cache. Given the ascending tokens that each kv head keeps, copies their key rows, value rows and positions
// to the front of a compact cache. A warp moves eight rows: one request reads their tokens, then 16 bytes a lane.
#pragma once

#include <cstdint>

#include "gpu/simt/site.hpp"

namespace kvatlas::gpu {

struct GatherShape {
  int dim;  // of keys and values, 16 bits each: 64, 128 or 256
  KV_FN constexpr int rows_of_request() const { return 256 / dim; }
};
inline constexpr int kGatherThreads = 128;
inline constexpr int kRowsOfWarp = 8;
inline constexpr int kRowsOfBlock = kGatherThreads / 32 * kRowsOfWarp;

/// Source and compact cache do not overlap: warps move rows in no order.
template <class C>
struct GatherArgs {
  template <class T>
  using Global = typename C::template Global<T>;
  Global<const std::int32_t> starts;     // [heads + 1]: where the rows of a head start in the compact cache, and the end
  Global<const std::int32_t> kept;       // [starts[heads]]: tokens of each head, ascending
  Global<const std::uint16_t> k, v;      // [heads][context][dim]
  Global<const std::int32_t> positions;  // [heads][context]
  Global<std::uint16_t> k_out, v_out;    // [starts[heads]][dim]
  Global<std::int32_t> positions_out;    // [starts[heads]]
  std::int64_t context = 0;
};

/// grid (most rows of a head / 32 rounded up, heads), kGatherThreads threads. Traps on a token outside the context or, among the rows
/// of a warp, out of order.
template <GatherShape S, class C>
KV_KERNEL void row_gather(C& c, const GatherArgs<C>& a) {
  using Lane = Vec<std::uint16_t, 8>;
  constexpr int kTogether = S.rows_of_request(), kLanes = 32 / kTogether, kPasses = kRowsOfWarp / kTogether;
  const std::int64_t head = c.block_y();
  const std::int64_t start = c.ld_nc(a.starts, head);
  const std::int64_t end = c.ld_nc(a.starts, head + 1);
  const std::int64_t first = start + (c.block_x() * (kGatherThreads / 32) + c.warp()) * kRowsOfWarp;
  if (first >= end) return;
  const int rows = static_cast<int>(end - first < kRowsOfWarp ? end - first : kRowsOfWarp);
  std::int32_t token = 0;
  if (c.lane() < rows) token = c.ld_nc(a.kept, first + c.lane());
  const std::int32_t before = c.shfl_up(kFullMask, token, 1);
  if (c.lane() < rows) {
    if (token < 0 || token >= a.context || (c.lane() > 0 && token <= before)) c.trap();
    c.st(a.positions_out, first + c.lane(), c.ld_nc(a.positions, head * a.context + token));
  }
  const auto k = C::template global_as<const Lane>(a.k);
  const auto v = C::template global_as<const Lane>(a.v);
  const auto k_out = C::template global_as<Lane>(a.k_out);
  const auto v_out = C::template global_as<Lane>(a.v_out);
  Lane keys[kPasses] = {}, values[kPasses] = {};  // all on their way before the first is written
  KV_UNROLL
  for (int pass = 0; pass < kPasses; ++pass) {
    const int row = pass * kTogether + c.lane() / kLanes;
    const std::int64_t from = (head * a.context + c.shfl(kFullMask, token, row)) * kLanes + c.lane() % kLanes;
    if (row < rows) {
      keys[pass] = c.ld_nc(k, from);
      values[pass] = c.ld_nc(v, from);
    }
  }
  KV_UNROLL
  for (int pass = 0; pass < kPasses; ++pass) {
    const std::int64_t to = (first + pass * kTogether) * kLanes + c.lane();
    if (pass * kTogether + c.lane() / kLanes < rows) {
      c.st(k_out, to, keys[pass]);
      c.st(v_out, to, values[pass]);
    }
  }
}

}  // namespace kvatlas::gpu

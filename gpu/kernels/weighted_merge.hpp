// weighted_merge: the value row of a token that leaves is blended into another's, weighted by the average attention that the two have
// collected (WeightedKV). A warp serves a pair; row_gather then closes the gaps.
#pragma once

#include "gpu/kernels/coding.hpp"

namespace kvatlas::gpu {

struct WeightedMergeShape {
  int dim;  // of values: 64, 128 or 256
  Dtype dtype;
};
inline constexpr int kWeightedMergeThreads = 128;
inline constexpr int kPairsOfBlock = kWeightedMergeThreads / 32;

/// Pairs of one head name different tokens: warps merge in no order.
template <class C>
struct WeightedMergeArgs {
  template <class T>
  using Global = typename C::template Global<T>;
  Global<const Vec<std::int32_t, 2>> pairs;  // [heads][merges]: the token that leaves, the token that receives
  Global<std::uint64_t> mass;                // [heads][stride]: accumulated_scores keeps both
  Global<const std::uint32_t> seen;          // [heads][stride], at least 1 for the tokens of a pair
  Global<std::uint16_t> values;              // [heads][stride][dim]
  std::int64_t tokens = 0, stride = 0, merges = 0;
  bool mass_moves = false;                   // the receiver's mass grows by that of the token that leaves
};

/// grid (merges / 4 rounded up, heads), kWeightedMergeThreads threads. Traps on tokens that do not exist or receive themselves.
template <WeightedMergeShape S, class C>
KV_KERNEL void weighted_merge(C& c, const WeightedMergeArgs<C>& a) {
  using Lane = Vec<std::uint16_t, S.dim / 32>;
  const std::int64_t head = c.block_y(), merge = c.block_x() * kPairsOfBlock + c.warp();
  if (merge >= a.merges) return;
  const Vec<std::int32_t, 2> pair = c.ld_nc(a.pairs, head * a.merges + merge);
  const std::int64_t from = pair.v[0], to = pair.v[1];
  if (from < 0 || to < 0 || from >= a.tokens || to >= a.tokens || from == to) c.trap();
  const std::uint64_t mass = c.ld(a.mass, head * a.stride + from);
  const std::uint64_t receiver_mass = c.ld(a.mass, head * a.stride + to);
  const float weight = num::from_mass(mass) / static_cast<float>(c.ld_nc(a.seen, head * a.stride + from));
  const float receiver_weight = num::from_mass(receiver_mass) / static_cast<float>(c.ld_nc(a.seen, head * a.stride + to));
  const float total = weight + receiver_weight;
  const float w = total == 0.0F ? 0.5F : weight / total;
  const auto rows = C::template global_as<Lane>(a.values + head * a.stride * S.dim);
  const Lane leaving = c.ld(rows, from * 32 + c.lane());
  Lane kept = c.ld(rows, to * 32 + c.lane());
  KV_UNROLL
  for (int j = 0; j < S.dim / 32; ++j) {
    const float x = load16<C, S.dtype>(kept.v[j]), y = load16<C, S.dtype>(leaving.v[j]);
    kept.v[j] = store16<C, S.dtype>(num::clamp(num::fma(w, y - x, x), num::min(x, y), num::max(x, y)));
  }
  c.st(rows, to * 32 + c.lane(), kept);
  c.sync_warp();  // every lane has read the receiver's mass
  if (a.mass_moves && c.lane() == 0) c.st(a.mass, head * a.stride + to, receiver_mass + mass);
}

}  // namespace kvatlas::gpu

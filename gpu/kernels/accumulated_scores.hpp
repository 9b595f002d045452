// accumulated_scores: adds the attention weights of new queries to the mass of every cached token, in fixed point (H2O), and counts the
// queries that saw it where a method divides by them (WeightedKV). Logits and final states come from the attention that the queries
// did, so keys are not read again. A thread serves a token; integer sums have no order.
#pragma once

#include <cstdint>

#include "core/arith.hpp"
#include "gpu/simt/site.hpp"

namespace kvatlas::gpu {

struct AccumulateShape {
  int q_per_kv;
  bool counted;  // keeps the number of queries that saw a token beside its mass
};
inline constexpr int kAccumulateThreads = 128;

template <class C>
struct AccumulateArgs {
  template <class T>
  using Global = typename C::template Global<T>;
  Global<const float> logits;        // [heads][q_per_kv][queries][stride], base 2: reference/primitives/attention.hpp
  Global<const Vec<float, 2>> state;  // [heads][q_per_kv][queries]: maximum, sum over all that the query sees
  Global<std::uint64_t> mass;        // [heads][stride], 0 for a token that no query has seen
  Global<std::uint32_t> seen;        // [heads][stride], the same; null where the shape does not count
  std::int64_t tokens = 0;           // stored, those of the queries included
  std::int64_t queries = 1;          // newest tokens; query i sees tokens - queries + i + 1 of them
  std::int64_t stride = 0;
};

/// grid (tokens / 128 rounded up, heads), kAccumulateThreads threads.
template <AccumulateShape S, class C>
KV_KERNEL void accumulated_scores(C& c, const AccumulateArgs<C>& a) {
  const std::int64_t head = c.block_y(), token = c.block_x() * kAccumulateThreads + c.thread();
  std::uint64_t mass = 0;
  std::uint32_t seen = 0;
  for (std::int64_t i = 0; i < a.queries; ++i) {
    if (token < a.tokens - a.queries + i + 1) {
      float x[S.q_per_kv];
      KV_UNROLL
      for (int g = 0; g < S.q_per_kv; ++g) x[g] = c.ld_nc(a.logits, ((head * S.q_per_kv + g) * a.queries + i) * a.stride + token);
      KV_UNROLL
      for (int g = 0; g < S.q_per_kv; ++g) {
        const Vec<float, 2> state = c.ld_nc(a.state, (head * S.q_per_kv + g) * a.queries + i);
        mass += num::to_mass(num::exp2(x[g] - state.v[0]) / state.v[1]);
      }
      seen += 1;
    }
    c.sync_warp();  // lanes join at the query that sees their token
  }
  if (token < a.tokens) {
    const std::int64_t at = head * a.stride + token;
    c.st(a.mass, at, c.ld(a.mass, at) + mass);
    if constexpr (S.counted) c.st(a.seen, at, c.ld(a.seen, at) + seen);
  }
}

}  // namespace kvatlas::gpu

// Exact traffic of the accumulated_scores kernel.
#pragma once

#include <algorithm>

#include "core/errors.hpp"
#include "core/kernels/exact_traffic.hpp"

namespace kvatlas::kernels {

struct MassLaunch {
  int q_per_kv = 1;
  bool counted = false;  // queries are counted beside the mass
  std::int64_t heads = 1, tokens = 0;
  std::int64_t queries = 1;  // newest of the tokens
  std::int64_t stride = 0;   // tokens between rows

  /// throws InvalidArgument for what the kernel does not take
  void check() const {
    if (heads <= 0) throw InvalidArgument(cat("heads is ", heads, ", must be positive"));
    if (tokens <= 0) throw InvalidArgument(cat("tokens is ", tokens, ", must be positive"));
    if (queries <= 0 || queries > tokens) throw InvalidArgument(cat("queries is ", queries, ", must be between 1 and tokens (", tokens, ")"));
    if (stride < tokens) throw InvalidArgument(cat("stride is ", stride, ", must be at least tokens (", tokens, ")"));
  }
  /// A warp reads, for each query row, the logits of those of its 32 tokens that the query sees and, in a request that these lanes
  /// share, the query's state; then mass and count of its tokens come and go.
  ExactTraffic traffic() const {
    check();
    enum Buffer { logits, states, masses, counts };
    SegmentSum reads, writes;
    for (std::int64_t head = 0; head < heads; ++head)
      for (std::int64_t first = 0; first < tokens; first += 32) {
        for (std::int64_t g = 0; g < q_per_kv; ++g)
          for (std::int64_t i = 0; i < queries; ++i) {
            const std::int64_t here = std::clamp<std::int64_t>(tokens - queries + i + 1 - first, 0, 32), row = (head * q_per_kv + g) * queries + i;
            if (here == 0) continue;
            reads.segment(logits, (row * stride + first) * 4, here * 4, 4);
            reads.same(states, row * 8, 8, 1, here);
          }
        const std::int64_t here = std::min<std::int64_t>(32, tokens - first);
        for (SegmentSum* sum : {&reads, &writes}) {
          sum->segment(masses, (head * stride + first) * 8, here * 8, 8);
          if (counted) sum->segment(counts, (head * stride + first) * 4, here * 4, 4);
        }
      }
    return {reads.total(), writes.total()};
  }
  /// Logits and states once, mass and counts once in and once out.
  std::int64_t floor_bytes() const {
    const std::int64_t pairs = queries * (tokens - queries) + queries * (queries + 1) / 2;
    return heads * (q_per_kv * (pairs * 4 + queries * 8) + 2 * tokens * (counted ? 12 : 8));
  }
};

}  // namespace kvatlas::kernels

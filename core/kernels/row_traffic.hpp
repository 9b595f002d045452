// Exact traffic of the kernels that transform rows in place: Hadamard and rotary embedding.
#pragma once

#include <span>

#include "core/kernels/exact_traffic.hpp"

namespace kvatlas::kernels {

struct RowLaunch {
  int dim = 128;
  std::int64_t heads = 1, tokens = 0;
  std::span<const std::int32_t> positions{};  // of the tokens, for rotary embedding

  /// A warp reads and writes a row in one request each.
  ExactTraffic hadamard() const {
    SegmentSum reads, writes;
    for (std::int64_t r = 0; r < heads * tokens; ++r) {
      reads.segment(0, r * dim * 2, std::int64_t{dim} * 2, dim / 16);
      writes.segment(0, r * dim * 2, std::int64_t{dim} * 2, dim / 16);
    }
    return {reads.total(), writes.total()};
  }
  /// Each half of a row is a request of its own; cos, sin and the position are read once a row.
  ExactTraffic rope() const {
    enum Buffer { rows, place, cos, sin };
    SegmentSum reads, writes;
    for (std::int64_t r = 0; r < heads * tokens; ++r) {
      const std::int64_t token = r % tokens, position = positions[static_cast<std::size_t>(token)];
      reads.same(place, token * 4, 4, 1);
      reads.segment(cos, position * dim * 2, std::int64_t{dim} * 2, dim / 16);
      reads.segment(sin, position * dim * 2, std::int64_t{dim} * 2, dim / 16);
      for (const std::int64_t half : {0, 1}) {
        reads.segment(rows, (r * 2 + half) * dim, dim, dim / 32);
        writes.segment(rows, (r * 2 + half) * dim, dim, dim / 32);
      }
    }
    return {reads.total(), writes.total()};
  }
};

}  // namespace kvatlas::kernels

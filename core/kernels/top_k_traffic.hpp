// Exact traffic of the top_k kernel, given what it chooses.
#pragma once

#include <algorithm>
#include <span>

#include "core/errors.hpp"
#include "core/kernels/exact_traffic.hpp"

namespace kvatlas::kernels {

struct TopKLaunch {
  std::int64_t rows = 1;
  std::int64_t candidates = 0;  // scored tokens of a row
  std::int64_t stride = 0;      // floats between rows, a multiple of 4
  std::int64_t k = 0;
  std::int64_t window = 0;      // tokens behind the candidates that always stay
  int threads = 256;

  /// throws InvalidArgument for what the kernel does not take
  void check() const {
    if (rows <= 0) throw InvalidArgument(cat("rows is ", rows, ", must be positive"));
    if (candidates < 0 || window < 0 || candidates + window == 0) throw InvalidArgument(cat("context is ", candidates + window, ", must be positive"));
    if (k < 0 || k > candidates) throw InvalidArgument(cat("k is ", k, ", must be between 0 and ", candidates));
    if (stride < candidates || stride % 4 != 0) throw InvalidArgument(cat("stride is ", stride, ", must be a multiple of 4 and at least ", candidates));
  }
  /// Four passes over the scores, 16 bytes a lane and the last up to three one by one; what a round of 4 * threads scores keeps leaves
  /// in neighbouring places. `chosen` is [rows][k + window].
  ExactTraffic traffic(std::span<const std::int32_t> chosen) const {
    check();
    SegmentSum reads, writes;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (int pass = 0; pass < (k > 0 ? 4 : 0); ++pass) {
        reads.segment(0, row * stride * 4, candidates / 4 * 16, 16);
        for (std::int64_t i = candidates / 4 * 4; i < candidates; ++i) reads.same(0, (row * stride + i) * 4, 4, 1, 1);
      }
      const auto kept = chosen.subspan(static_cast<std::size_t>(row * (k + window)), static_cast<std::size_t>(k));
      const std::int64_t out = row * (k + window);
      auto from = kept.begin();
      while (from != kept.end()) {
        const std::int64_t round = *from / (4 * threads);
        const auto to = std::lower_bound(from, kept.end(), (round + 1) * 4 * threads);
        writes.segment(0, (out + (from - kept.begin())) * 4, (to - from) * 4, 4);
        from = to;
      }
      writes.segment(0, (out + k) * 4, window * 4, 4);
    }
    return {reads.total(), writes.total()};
  }
  std::int64_t floor_bytes() const { return rows * ((k > 0 ? candidates : 0) + k + window) * 4; }
};

}  // namespace kvatlas::kernels

// Exact traffic of the page_score kernel.
#pragma once

#include "core/kernels/exact_traffic.hpp"

namespace kvatlas::kernels {

struct PageScoreLaunch {
  int dim = 128;
  int q_per_kv = 1;
  std::int64_t heads = 1, pages = 0;

  /// A warp serves four pages: for each 64 channels one request for their maxima, one for their minima, one a query row, which
  /// the four groups of lanes ask for together; a score leaves for each page.
  ExactTraffic traffic() const {
    enum Buffer { bounds, query, scores };
    SegmentSum reads, writes;
    for (std::int64_t head = 0; head < heads; ++head)
      for (std::int64_t first = 0; first < round_up(pages, 16); first += 4) {
        const std::int64_t here = std::clamp<std::int64_t>(pages - first, 0, 4), row = std::int64_t{dim} * 2;
        for (std::int64_t chunk = 0; chunk < dim / 64; ++chunk) {
          for (const std::int64_t side : {0, 1}) reads.joint(bounds, ((head * pages + first) * 2 + side) * row + chunk * 128, 128, 2 * row, here);
          for (std::int64_t g = 0; g < q_per_kv; ++g) reads.same_for_groups(query, (head * q_per_kv + g) * row + chunk * 128, 128, 4);
        }
        for (std::int64_t g = 0; g < q_per_kv; ++g) writes.segment(scores, ((head * q_per_kv + g) * pages + first) * 4, here * 4, 4);
      }
    return {reads.total(), writes.total()};
  }
};

}  // namespace kvatlas::kernels

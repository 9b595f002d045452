// Exact traffic of the page_bounds kernel, given the page table.
#pragma once

#include <algorithm>
#include <span>

#include "core/errors.hpp"
#include "core/kernels/exact_traffic.hpp"

namespace kvatlas::kernels {

struct PageBoundsLaunch {
  int dim = 128;
  std::int64_t heads = 1;
  std::int64_t page = 16;     // tokens
  std::int64_t context = 0;   // tokens; the last page may be open
  std::int64_t first = 0;     // first page to bound
  std::int64_t page_capacity = 0;
  std::int64_t page_stride = 0, head_stride = 0;  // elements of the key store
  std::span<const std::int32_t> table{};          // [pages]

  std::int64_t pages() const { return ceil_div(context, page); }
  /// throws InvalidArgument for what the kernel does not take; the table is the caller's
  void check() const {
    if (heads <= 0) throw InvalidArgument(cat("heads is ", heads, ", must be positive"));
    if (page <= 0 || page > (1 << 20)) throw InvalidArgument(cat("page is ", page, ", must be between 1 and 1048576 tokens"));
    if (context <= 0) throw InvalidArgument(cat("context is ", context, ", must be positive"));
    if (first < 0 || first >= pages()) throw InvalidArgument(cat("first is ", first, ", must be a page of the context, 0 to ", pages() - 1));
    if (page_capacity < pages()) throw InvalidArgument(cat("page_capacity is ", page_capacity, ", must be at least the pages of the context (", pages(), ")"));
    if (page_stride % 8 != 0 || head_stride % 8 != 0) throw InvalidArgument(cat("page_stride and head_stride are ", page_stride, " and ", head_stride, ", must be multiples of 8 elements"));
  }
  /// A warp reads its page's place, then one row of each of its 256 / dim runs a request; both bounds leave together.
  ExactTraffic traffic() const {
    check();
    enum Buffer { places, keys };
    SegmentSum reads, writes;
    const std::int64_t row = std::int64_t{dim} * 2, runs = 256 / dim;
    for (std::int64_t head = 0; head < heads; ++head)
      for (std::int64_t p = first; p < pages(); ++p) {
        const std::int64_t rows = std::min(page, context - p * page), of_run = ceil_div(rows, runs);
        reads.same(places, p * 4, 4, 1);
        const std::int64_t at = (table[static_cast<std::size_t>(p)] * page_stride + head * head_stride) * 2;
        for (std::int64_t t = 0; t < of_run; ++t) reads.joint(keys, at + t * row, row, of_run * row, ceil_div(rows - t, of_run));
        writes.segment(0, (head * page_capacity + p) * 2 * row, 2 * row, 16);
      }
    return {reads.total(), writes.total()};
  }
  /// Keys of the pages once, their bounds once.
  std::int64_t floor_bytes() const { return heads * (context - first * page + (pages() - first) * 2) * dim * 2; }
};

}  // namespace kvatlas::kernels

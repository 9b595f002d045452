// Exact traffic of the row_gather kernel, given the lists of kept tokens.
#pragma once

#include <span>
#include <vector>

#include "core/errors.hpp"
#include "core/kernels/exact_traffic.hpp"

namespace kvatlas::kernels {

struct GatherLaunch {
  int dim = 128;
  std::int64_t context = 0;
  std::span<const std::int32_t> starts{};  // [heads + 1]: where a head's rows start, and the end
  std::span<const std::int32_t> kept{};    // [starts.back()]: tokens of each head

  std::int64_t heads() const { return static_cast<std::int64_t>(starts.size()) - 1; }
  std::int64_t most_rows() const {
    std::int64_t most = 0;
    for (std::size_t h = 0; h + 1 < starts.size(); ++h) most = std::max<std::int64_t>(most, starts[h + 1] - starts[h]);
    return most;
  }
  /// throws InvalidArgument for lists that the kernel does not take
  void check() const {
    if (context <= 0) throw InvalidArgument(cat("context is ", context, ", must be positive"));
    if (starts.size() < 2 || starts.front() != 0 || starts.back() != static_cast<std::int32_t>(kept.size()))
      throw InvalidArgument(cat("starts must run from 0 to the number of kept tokens (", kept.size(), ")"));
    for (std::size_t h = 0; h + 1 < starts.size(); ++h)
      if (starts[h + 1] < starts[h]) throw InvalidArgument(cat("starts[", h + 1, "] is ", starts[h + 1], ", must not be below starts[", h, "] (", starts[h], ")"));
    for (std::size_t h = 0; h + 1 < starts.size(); ++h) {
      if (starts[h + 1] - starts[h] > context) throw InvalidArgument(cat("head ", h, " keeps ", starts[h + 1] - starts[h], " tokens, must be at most the context (", context, ")"));
      for (std::int32_t i = starts[h]; i < starts[h + 1]; ++i) {
        const std::int32_t token = kept[static_cast<std::size_t>(i)];
        if (token < 0 || token >= context) throw InvalidArgument(cat("kept[", i, "] is ", token, ", must be between 0 and ", context - 1));
        if (i > starts[h] && token <= kept[static_cast<std::size_t>(i - 1)]) throw InvalidArgument(cat("kept[", i, "] is ", token, ", must be above kept[", i - 1, "] (", kept[static_cast<std::size_t>(i - 1)], ")"));
      }
    }
  }
  /// Every warp of the grid reads where its head starts and ends; one with rows reads up to eight tokens and their positions in a
  /// request each, then keys and values, 512 bytes of them a request.
  ExactTraffic traffic() const {
    check();
    enum Buffer { begins, tokens, keys, values, places };
    SegmentSum reads, writes;
    const std::int64_t row = std::int64_t{dim} * 2, together = 256 / dim;
    for (std::int64_t head = 0; head < heads(); ++head) {
      const std::int64_t start = starts[static_cast<std::size_t>(head)], end = starts[static_cast<std::size_t>(head) + 1];
      const std::int64_t warps = ceil_div(most_rows(), 32) * 4;
      reads.same(begins, head * 4, 4, warps);
      reads.same(begins, head * 4 + 4, 4, warps);
      for (std::int64_t first = start; first < end; first += 8) {
        const std::int64_t here = std::min<std::int64_t>(8, end - first);
        reads.segment(tokens, first * 4, here * 4, 4);
        writes.segment(places, first * 4, here * 4, 4);
        const auto from = [&](std::int64_t i, std::int64_t count, std::int64_t bytes) {
          std::vector<std::int64_t> offsets;
          for (std::int64_t j = i; j < i + count; ++j) offsets.push_back((head * context + kept[static_cast<std::size_t>(first + j)]) * bytes);
          return offsets;
        };
        reads.gathered(places, from(0, here, 4), 4);
        for (std::int64_t i = 0; i < here; i += together) {
          const std::int64_t count = std::min(together, here - i);
          for (const int side : {keys, values}) {
            reads.gathered(side, from(i, count, row), row);
            writes.segment(side, (first + i) * row, count * row, 16);
          }
        }
      }
    }
    return {reads.total(), writes.total()};
  }
  /// Every byte once: lists, rows and positions read, rows and positions written.
  std::int64_t floor_bytes() const {
    const auto rows = static_cast<std::int64_t>(kept.size());
    return static_cast<std::int64_t>(starts.size()) * 4 + rows * 4 + 2 * rows * (std::int64_t{dim} * 4 + 4);
  }
};

}  // namespace kvatlas::kernels

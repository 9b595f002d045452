// Exact traffic of the kernels that merge: parts of a tree of shared prefixes, value rows of tokens that leave. Both take their control
// data: where partial results lie, which tokens pair up.
#pragma once

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "core/errors.hpp"
#include "core/kernels/exact_traffic.hpp"

namespace kvatlas::kernels {

/// Where the partial results of one part of a sequence's text lie: entry of span s of row r is first + r * stride + s.
struct alignas(16) PrefixPart {
  std::int64_t first = 0;
  std::int32_t stride = 0;
  std::int32_t spans = 0;  // 0: the part holds no token
};

struct PrefixMergeLaunch {
  int dim = 128;
  int levels = 1;
  std::int64_t rows = 1;     // query rows of a sequence
  std::int64_t entries = 0;  // partial results that exist
  std::span<const PrefixPart> parts{};  // [sequences][levels]

  std::int64_t sequences() const { return levels > 0 ? static_cast<std::int64_t>(parts.size()) / levels : 0; }
  /// throws InvalidArgument for what the kernel does not take
  void check() const {
    if (levels <= 0 || parts.empty() || parts.size() % static_cast<std::size_t>(levels) != 0)
      throw InvalidArgument(cat("parts has ", parts.size(), " entries, must have ", levels, " for each sequence"));
    if (rows <= 0) throw InvalidArgument(cat("rows is ", rows, ", must be positive"));
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const PrefixPart& p = parts[i];
      if (p.spans < 0 || p.stride < p.spans) throw InvalidArgument(cat("parts[", i, "] has ", p.spans, " spans and stride ", p.stride, ", must have between 0 and stride spans"));
      if (p.first < 0 || (p.spans > 0 && p.first + (rows - 1) * p.stride + p.spans > entries))
        throw InvalidArgument(cat("parts[", i, "] ends at entry ", p.first + (rows - 1) * p.stride + p.spans, ", must end within ", entries));
    }
  }
  /// Every warp of a row reads each part's place, the state of each span and its own 32 channels of it.
  ExactTraffic traffic() const {
    check();
    enum Buffer { places, states, partials };
    SegmentSum reads, writes;
    const std::int64_t warps = dim / 32;
    for (std::int64_t sequence = 0; sequence < sequences(); ++sequence)
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t level = 0; level < levels; ++level) {
          const PrefixPart& p = parts[static_cast<std::size_t>(sequence * levels + level)];
          reads.same(places, (sequence * levels + level) * 16, 16, warps);
          for (std::int64_t s = 0; s < p.spans; ++s) {
            const std::int64_t entry = p.first + row * p.stride + s;
            reads.same(states, entry * 8, 8, warps);
            reads.segment(partials, entry * dim * 4, std::int64_t{dim} * 4, 4);
          }
        }
        writes.segment(0, (sequence * rows + row) * dim * 2, std::int64_t{dim} * 2, 2);
      }
    return {reads.total(), writes.total()};
  }
  /// Each partial result of each sequence's path once a row, outputs once.
  std::int64_t floor_bytes() const {
    std::int64_t spans = 0;
    for (const PrefixPart& p : parts) spans += p.spans;
    return spans * rows * (std::int64_t{dim} + 2) * 4 + sequences() * rows * dim * 2;
  }
};

struct WeightedMergeLaunch {
  int dim = 128;
  std::int64_t heads = 1, tokens = 0, stride = 0, merges = 1;
  bool mass_moves = false;
  std::span<const std::pair<std::int32_t, std::int32_t>> pairs{};  // [heads][merges]: the token that leaves, the one that receives

  /// throws InvalidArgument for sizes that the kernel does not take
  void check_sizes() const {
    if (heads <= 0) throw InvalidArgument(cat("heads is ", heads, ", must be positive"));
    if (tokens < 2) throw InvalidArgument(cat("tokens is ", tokens, ", must be at least 2"));
    if (stride < tokens) throw InvalidArgument(cat("stride is ", stride, ", must be at least tokens (", tokens, ")"));
    if (merges < 0 || 2 * merges > tokens) throw InvalidArgument(cat("merges is ", merges, ", must be between 0 and half of the tokens (", tokens / 2, ")"));
  }
  /// throws InvalidArgument for sizes and pairs that the kernel does not take
  void check() const {
    check_sizes();
    if (static_cast<std::int64_t>(pairs.size()) != heads * merges) throw InvalidArgument(cat("pairs has ", pairs.size(), " entries, must have ", heads * merges));
    for (std::size_t i = 0; i < pairs.size(); ++i)
      for (const std::int32_t token : {pairs[i].first, pairs[i].second})
        if (token < 0 || token >= tokens) throw InvalidArgument(cat("pairs[", i, "] names token ", token, ", must be between 0 and ", tokens - 1));
    for (std::int64_t head = 0; head < heads; ++head) {
      std::vector<std::int32_t> named;
      for (std::int64_t m = 0; m < merges; ++m) {
        const auto& [from, to] = pairs[static_cast<std::size_t>(head * merges + m)];
        named.push_back(from);
        named.push_back(to);
      }
      std::ranges::sort(named);
      if (const auto twice = std::ranges::adjacent_find(named); twice != named.end()) throw InvalidArgument(cat("pairs of head ", head, " name token ", *twice, " twice"));
    }
  }
  /// A warp reads its pair, mass and count of both tokens and both rows; one row leaves, and a mass where it moves.
  ExactTraffic traffic() const {
    check();
    enum Buffer { places, masses, counts, rows };
    SegmentSum reads, writes;
    const std::int64_t row = std::int64_t{dim} * 2;
    for (std::int64_t head = 0; head < heads; ++head)
      for (std::int64_t m = 0; m < merges; ++m) {
        const auto& [from, to] = pairs[static_cast<std::size_t>(head * merges + m)];
        reads.same(places, (head * merges + m) * 8, 8, 1);
        for (const std::int64_t token : {from, to}) {
          reads.same(masses, (head * stride + token) * 8, 8, 1);
          reads.same(counts, (head * stride + token) * 4, 4, 1);
          reads.segment(rows, (head * stride + token) * row, row, dim / 16);
        }
        writes.segment(rows, (head * stride + to) * row, row, dim / 16);
        if (mass_moves) writes.same(masses, (head * stride + to) * 8, 8, 1, 1);
      }
    return {reads.total(), writes.total()};
  }
  std::int64_t floor_bytes() const { return heads * merges * (8 + 2 * 12 + std::int64_t{dim} * 6 + (mass_moves ? 8 : 0)); }
};

}  // namespace kvatlas::kernels

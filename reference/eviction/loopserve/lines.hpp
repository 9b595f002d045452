// LoopServe's lines: columns and diagonals of a head's attention that together hold most of its weight.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "reference/primitives/selection.hpp"

namespace kvatlas::methods::loopserve_parts {

/// Attention masses (num::to_mass) of one sampled query over the rows that it sees, rows 0, 1, ..., its own last.
using SampledRow = std::vector<std::uint64_t>;

struct Lines {
  Slots columns;  // rows that every query behind them attends to, ascending
  Slots offsets;  // how far behind a query the rows of its diagonals lie, ascending; 0, its own row, is always there
  /// The rows that the query at row `at` attends to, ascending.
  Slots rows_of(std::int64_t at) const;
};

/// Greedy choice: the diagonal of offset 0, then each time the line with the most weight that no chosen line covers, until the lines cover
/// `share` of all sampled weight. Of equal lines a column goes before a diagonal, then the lower one.
Lines choose_lines(std::span<const SampledRow> sampled, double share);

/// Queries of a chunk of `n` whose attention is sampled: `most` of them, evenly spread, the last one among them.
Slots sampled_queries(std::int64_t n, std::int64_t most);

}  // namespace kvatlas::methods::loopserve_parts

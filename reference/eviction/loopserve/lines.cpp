#include "reference/eviction/loopserve/lines.hpp"

#include <algorithm>

namespace kvatlas::methods::loopserve_parts {

Slots sampled_queries(std::int64_t n, std::int64_t most) {
  const std::int64_t m = std::min(n, most);
  Slots queries;
  for (std::int64_t s = 1; s <= m; ++s) queries.push_back(s * n / m - 1);
  return queries;
}

namespace {

/// What the lines not chosen yet would add, and which sampled weights are covered.
class Uncovered {
 public:
  explicit Uncovered(std::span<const SampledRow> sampled) : left_(sampled.begin(), sampled.end()) {
    for (const SampledRow& row : left_) {
      const std::size_t n = row.size();
      if (n > columns_.size()) columns_.resize(n), offsets_.resize(n);
      for (std::size_t j = 0; j < n; ++j) {
        columns_[j] += row[j];
        offsets_[n - 1 - j] += row[j];
        total_ += row[j];
      }
    }
  }

  std::uint64_t total() const { return total_; }
  std::uint64_t covered() const { return covered_; }
  const std::vector<std::uint64_t>& columns() const { return columns_; }
  const std::vector<std::uint64_t>& offsets() const { return offsets_; }

  void take_column(std::size_t j) {
    for (SampledRow& row : left_)
      if (j < row.size()) take(row, j);
  }
  void take_offset(std::size_t o) {
    for (SampledRow& row : left_)
      if (o < row.size()) take(row, row.size() - 1 - o);
  }

 private:
  void take(SampledRow& row, std::size_t j) {
    columns_[j] -= row[j];
    offsets_[row.size() - 1 - j] -= row[j];
    covered_ += row[j];
    row[j] = 0;
  }

  std::vector<SampledRow> left_;
  std::vector<std::uint64_t> columns_, offsets_;  // uncovered weight of each line
  std::uint64_t total_ = 0, covered_ = 0;
};

}  // namespace

Lines choose_lines(std::span<const SampledRow> sampled, double share) {
  Uncovered uncovered(sampled);
  Lines lines;
  lines.offsets.push_back(0);
  if (uncovered.total() > 0) uncovered.take_offset(0);
  const double enough = share * static_cast<double>(uncovered.total());
  while (static_cast<double>(uncovered.covered()) < enough) {
    const auto column = std::ranges::max_element(uncovered.columns()), offset = std::ranges::max_element(uncovered.offsets());
    if (*column == 0 && *offset == 0) break;
    if (*column >= *offset) {
      const std::int64_t j = column - uncovered.columns().begin();
      lines.columns.push_back(j);
      uncovered.take_column(static_cast<std::size_t>(j));
    } else {
      const std::int64_t o = offset - uncovered.offsets().begin();
      lines.offsets.push_back(o);
      uncovered.take_offset(static_cast<std::size_t>(o));
    }
  }
  std::ranges::sort(lines.columns);
  std::ranges::sort(lines.offsets);
  return lines;
}

Slots Lines::rows_of(std::int64_t at) const {
  Slots diagonal;
  for (auto o = offsets.rbegin(); o != offsets.rend(); ++o)
    if (*o <= at) diagonal.push_back(at - *o);
  Slots rows;
  std::ranges::set_union(std::span(columns.begin(), std::ranges::upper_bound(columns, at)), diagonal, std::back_inserter(rows));
  return rows;
}

}  // namespace kvatlas::methods::loopserve_parts

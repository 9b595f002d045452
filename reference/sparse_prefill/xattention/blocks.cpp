#include "reference/sparse_prefill/xattention/blocks.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/units.hpp"

namespace kvatlas::antidiagonal {

namespace {

constexpr double kLog2E = 1.4426950408889634074;

/// Keys in rows of `stride` tokens, the last one filled up with zeros.
Array reduced_keys(const Grid& grid, View<const float> k) {
  const std::int64_t dim = k.dim(1), rows = ceil_div(k.dim(0), grid.stride);
  Array out({rows, grid.stride * dim});
  for (std::int64_t t = 0; t < k.dim(0); ++t) std::ranges::copy(k.row(t), out.values().begin() + t * dim);
  return out;
}

/// Reduced query row i: its queries in reverse, zeros where the range has none.
std::vector<float> reduced_query(const Grid& grid, View<const float> q, std::int64_t first, std::int64_t i) {
  const std::int64_t dim = q.dim(1), s = grid.stride;
  std::vector<float> row(static_cast<std::size_t>(s * dim), 0.0F);
  for (std::int64_t j = 0; j < s; ++j) {
    const std::int64_t at = i * s + (s - 1 - j) - first;
    if (at >= 0 && at < q.dim(0)) std::ranges::copy(q.row(at), row.begin() + j * dim);
  }
  return row;
}

}  // namespace

std::vector<std::vector<float>> block_mass(const Grid& grid, View<const float> q, std::int64_t first, View<const float> k) {
  KV_ASSERT(grid.block % grid.stride == 0, "a block is whole reduced rows");
  KV_ASSERT(q.dim(0) > 0 && k.dim(0) >= first + q.dim(0), "every query has its own key");
  const std::int64_t s = grid.stride, last = first + q.dim(0) - 1, per_block = grid.block / s;
  const std::int64_t first_block = first / grid.block, q_blocks = last / grid.block - first_block + 1;
  const std::int64_t k_blocks = ceil_div(k.dim(0), grid.block);
  const float scale = static_cast<float>(kLog2E / (std::sqrt(static_cast<double>(q.dim(1))) * static_cast<double>(s) * grid.norm));
  const Array keys = reduced_keys(grid, k);
  std::vector<std::vector<float>> mass(static_cast<std::size_t>(q_blocks), std::vector<float>(static_cast<std::size_t>(k_blocks), 0.0F));
  std::vector<float> x;
  for (std::int64_t i = first / s; i <= last / s; ++i) {
    const std::vector<float> query = reduced_query(grid, q, first, i);
    x.resize(static_cast<std::size_t>(i + 1));
    num::qk_dot_rows(query.data(), keys.values().data(), s * q.dim(1), i + 1, static_cast<int>(query.size()), x.data());
    for (float& f : x) f *= scale;
    const float max = num::max_of(x);
    for (float& f : x) f = num::exp2(f - max);
    const float sum = num::lane_sum(x);
    for (float& f : x) f /= sum;
    auto& row = mass[static_cast<std::size_t>(i / per_block - first_block)];
    for (std::int64_t b = 0; b * per_block <= i; ++b)
      row[static_cast<std::size_t>(b)] += num::lane_sum(x.data() + b * per_block, std::min(per_block, i + 1 - b * per_block));
  }
  return mass;
}

std::vector<std::uint8_t> choose_blocks(std::span<const float> mass, double threshold, Rule rule) {
  const std::size_t diagonal = mass.size() - 1;
  std::vector<std::uint64_t> others;
  for (std::size_t b = rule == Rule::official ? 0 : 1; b < diagonal; ++b) {
    if (num::is_nan(mass[b])) throw InvalidArgument(cat("mass of block ", b, " is NaN, must be a number"));
    others.push_back(num::selection_key(mass[b], static_cast<std::uint32_t>(b)));
  }
  std::ranges::sort(others, std::greater<>());
  const auto at = [&](std::size_t j) { return static_cast<double>(mass[num::index_of_key(others[j])]); };
  double mandatory = static_cast<double>(mass[diagonal]);
  if (rule == Rule::intended && diagonal > 0) mandatory += static_cast<double>(mass[0]);
  double total = mandatory;
  for (std::size_t j = 0; j < others.size(); ++j) total += at(j);
  const double required = threshold * total;

  std::vector<std::uint8_t> keep(mass.size(), 0);
  keep[0] = keep[diagonal] = 1;
  double kept = mandatory;  // official: the sum as it stood one block earlier, nothing before the first
  for (std::size_t j = 0; j < others.size(); ++j) {
    if (rule == Rule::official && j > 1) kept += at(j - 2);
    if (!((rule == Rule::official && j == 0 ? 0.0 : kept) < required)) break;
    keep[num::index_of_key(others[j])] = 1;
    if (rule == Rule::intended) kept += at(j);
  }
  return keep;
}

std::int64_t official_chunk(std::int64_t n) {
  const auto power = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(1, n))));
  return std::max<std::int64_t>(2048, std::min(std::max<std::int64_t>(2048, power), (std::int64_t{1} << 28) / power));
}

}  // namespace kvatlas::antidiagonal

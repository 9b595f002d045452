#include "reference/primitives/eviction/allocators.hpp"

#include <algorithm>
#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"

namespace kvatlas::eviction {

namespace {

/// Largest and smallest share of a falling schedule of mean `base`; no layer can keep more than `most`.
struct Ends {
  double first, last;
};
Ends ends_of(double base, double beta_share, double most) {
  Ends e{.first = 2 * base - beta_share, .last = beta_share};
  if (e.first >= most) e = {.first = most, .last = 2 * base - most};
  return e;
}

/// Half to even, as Python's round().
std::int64_t round_even(double x) { return static_cast<std::int64_t>(std::nearbyint(x)); }

std::int64_t kvpress_rows(const Pyramid& p, const Place& place, std::int64_t rows) {
  const double base = static_cast<double>(p.budget.value);
  const Ends e = ends_of(base, base / p.beta, static_cast<double>(rows - p.observation_window.value));
  const bool falls = static_cast<double>(rows) >= e.first && e.first >= e.last && e.last >= static_cast<double>(p.observation_window.value);
  if (!falls || place.layers < 2) return p.budget.value;
  return round_even(e.first - place.ordinal * ((e.first - e.last) / (place.layers - 1)));
}

}  // namespace

std::int64_t pyramid_rows(const Pyramid& p, const Place& place, std::int64_t rows) {
  if (rows <= p.budget.value) return rows;
  if (p.schedule == Schedule::kvpress) return kvpress_rows(p, place, rows);
  const std::int64_t base = p.budget.value - p.observation_window.value;
  if (rows < 2 * base || place.layers < 2) return p.budget.value;
  std::int64_t last = base / p.beta, first = 2 * base - last;
  const std::int64_t most = rows - p.observation_window.value;
  if (first >= most) {
    first = most;
    last = 2 * base - most;
  }
  const std::int64_t gaps = place.layers - 1;
  if (p.schedule == Schedule::floor) return first - place.ordinal * ((first - last) / gaps) + p.observation_window.value;
  // The first n layers of the ideal line hold n * first - (first - last) * n (n - 1) / (2 * gaps); whole tokens of that sum.
  const auto held = [&](std::int64_t n) { return (2 * gaps * n * first - (first - last) * n * (n - 1)) / (2 * gaps); };
  return held(place.ordinal + 1) - held(place.ordinal) + p.observation_window.value;
}

Counts share_best(const std::vector<std::span<const float>>& candidates, std::int64_t k, std::int64_t guaranteed) {
  const std::int64_t each = static_cast<std::int64_t>(candidates.front().size());
  std::vector<float> all;
  for (const auto& head : candidates) {
    const std::size_t at = all.size();
    all.insert(all.end(), head.begin(), head.end());
    for (const std::int64_t s : top_k(head, std::min({guaranteed, k, each}))) all[at + static_cast<std::size_t>(s)] = num::infinity();
  }
  Counts counts(candidates.size(), 0);
  for (const std::int64_t s : top_k(all, std::min(k, each) * static_cast<std::int64_t>(candidates.size()))) ++counts[static_cast<std::size_t>(s / each)];
  return counts;
}

Counts share_rounded(const std::vector<std::span<const float>>& candidates, std::int64_t k, double floor, bool normalize) {
  const std::int64_t each = static_cast<std::int64_t>(candidates.front().size());
  std::vector<std::vector<float>> scores;
  for (const auto& head : candidates) {
    scores.emplace_back(head.begin(), head.end());
    if (!normalize) continue;
    double best = 0, all = 0;  // slots in ascending order
    for (const std::int64_t s : top_k(head, std::min(k, each))) best += static_cast<double>(head[static_cast<std::size_t>(s)]);
    for (const float s : head) all += static_cast<double>(s);
    for (float& s : scores.back()) s *= static_cast<float>(best / all);
  }
  Counts counts = share_best({scores.begin(), scores.end()}, k, 0);
  const double sure = std::trunc(static_cast<double>(k) * floor);
  for (std::int64_t& n : counts) n = std::min(each, round_even(static_cast<double>(n) * (1 - floor) + sure));
  return counts;
}

Counts share_by_preference(const std::vector<double>& asked, std::int64_t total, std::int64_t most) {
  double sum = 0;
  for (const double a : asked) sum += a;
  Counts counts;
  for (const double a : asked)
    counts.push_back(static_cast<std::int64_t>(sum > 0 ? a / sum * static_cast<double>(total) : static_cast<double>(total) / static_cast<double>(asked.size())));
  // Adds `amount` (or takes it away) in equal parts to those that `open` lets, the remainder one by one from the first.
  const auto spread = [&](std::int64_t amount, const auto& open) {
    std::vector<std::size_t> takers;
    for (std::size_t i = 0; i < counts.size(); ++i)
      if (open(counts[i])) takers.push_back(i);
    const std::int64_t n = static_cast<std::int64_t>(takers.size()), size = std::abs(amount), sign = amount < 0 ? -1 : 1;
    for (std::int64_t i = 0; i < n; ++i) counts[takers[static_cast<std::size_t>(i)]] += sign * (size / n + (i < size % n ? 1 : 0));
  };
  std::int64_t excess = 0, sum_of_counts = 0;
  for (std::int64_t& c : counts) {
    excess += std::max<std::int64_t>(0, c - most);
    c = std::min(c, most);
  }
  const auto below = [&](std::int64_t c) { return c < most; };
  spread(excess, below);
  for (const std::int64_t c : counts) sum_of_counts += c;
  if (const std::int64_t missing = total - sum_of_counts; missing > 0) spread(missing, below);
  else spread(missing, [](std::int64_t c) { return c > 1; });
  return counts;
}

}  // namespace kvatlas::eviction

#include "reference/eviction/mpcache/clusters.hpp"

#include <algorithm>
#include <limits>

#include "core/parallel.hpp"
#include "core/units.hpp"
#include "reference/primitives/attention.hpp"

namespace kvatlas::methods::mpcache_parts {

std::vector<float> tail_scores(const LayerClass& c, View<const float> q, const std::vector<Array>& keys) {
  const std::int64_t rows = keys.front().dims()[0], tail = q.dim(1);
  constexpr std::int64_t kParts = 16;  // each with maxima of its own; the order of maxima does not matter
  std::vector<std::vector<float>> best(kParts, std::vector<float>(static_cast<std::size_t>(rows), 0.0F));
  parallel_for(kParts, [&](std::int64_t part) {
    std::vector<float> x(static_cast<std::size_t>(rows)), weights(x.size());
    std::vector<double> sum(x.size());
    for (std::int64_t i = part; i < tail; i += kParts) {
      std::ranges::fill(sum, 0.0);
      for (int h = 0; h < c.q_heads; ++h) {
        logits(q.row(h, i), keys[static_cast<std::size_t>(h / c.q_per_kv())].view(), 1.44269504F, x);
        softmax_weights(x, softmax_part(x, View<const float>(nullptr, {rows, 0})), weights);
        for (std::size_t t = 0; t < sum.size(); ++t) sum[t] += static_cast<double>(weights[t]);
      }
      auto& mine = best[static_cast<std::size_t>(part)];
      for (std::size_t t = 0; t < sum.size(); ++t) mine[t] = std::max(mine[t], static_cast<float>(sum[t] / c.q_heads));
    }
  });
  for (std::size_t part = 1; part < best.size(); ++part)
    for (std::size_t t = 0; t < best[0].size(); ++t) best[0][t] = std::max(best[0][t], best[part][t]);
  return best[0];
}

std::vector<float> bounds(View<const float> keys, std::int64_t first, std::int64_t n) {
  const auto dim = static_cast<std::size_t>(keys.dim(1));
  std::vector<float> out(2 * dim);
  for (std::size_t i = 0; i < dim; ++i) {
    float most = keys.row(first)[i], least = most;
    for (std::int64_t t = first + 1; t < first + n; ++t) {
      most = std::max(most, keys.row(t)[i]);
      least = std::min(least, keys.row(t)[i]);
    }
    out[i] = most;
    out[dim + i] = least;
  }
  return out;
}

float similarity(std::span<const float> q, std::span<const float> bounds, double alpha) {
  double sum = 0;
  for (std::size_t i = 0; i < q.size(); ++i)
    sum += static_cast<double>(q[i]) * (alpha * static_cast<double>(bounds[i]) + (1 - alpha) * static_cast<double>(bounds[q.size() + i]));
  return static_cast<float>(std::clamp(sum, -static_cast<double>(std::numeric_limits<float>::max()), static_cast<double>(std::numeric_limits<float>::max())));
}

namespace {

std::int64_t share_of(std::int64_t n, double share) { return static_cast<std::int64_t>(static_cast<double>(n) * share); }

/// The best of `scores`, and the first and, if told, the last; ascending.
Slots best_and_ends(std::span<const float> scores, std::int64_t k, bool last) {
  Slots chosen = top_k(scores, k);
  const auto n = static_cast<std::int64_t>(scores.size());
  if (chosen.empty() || chosen.front() != 0) chosen.insert(chosen.begin(), 0);
  if (last && chosen.back() != n - 1) chosen.push_back(n - 1);
  return chosen;
}

}  // namespace

Slots chosen_rows(const Choice& how, std::int64_t rows, const SimilarityOf& similarity) {
  const std::int64_t half = how.cluster / 2, coarse = ceil_div(rows, how.cluster), fine = ceil_div(rows, half);
  const bool open = rows % how.cluster != 0;
  std::vector<float> scores;
  for (std::int64_t i = 0; i < coarse; ++i) scores.push_back(similarity(how.cluster, i));
  std::vector<float> halves;  // of chosen clusters alone, in order
  Slots names;
  for (const std::int64_t i : best_and_ends(scores, share_of(coarse, how.coarse_keep), open))
    for (std::int64_t j = 2 * i; j < std::min(2 * i + 2, fine); ++j) {
      names.push_back(j);
      halves.push_back(similarity(half, j));
    }
  const auto live = static_cast<std::int64_t>(names.size());
  Slots listed;
  for (const std::int64_t at : best_and_ends(halves, std::min(live, share_of(fine, how.fine_keep)), open)) {
    const std::int64_t j = names[static_cast<std::size_t>(at)];
    for (std::int64_t t = j * half; t < std::min(rows, (j + 1) * half); ++t) listed.push_back(t);
  }
  const std::int64_t lacks = (half - rows % half) % half;
  if (!how.shifts_padding || lacks == 0 || listed.back() != rows - 1) return listed;
  for (std::int64_t t = std::max<std::int64_t>(0, rows - lacks); t < rows; ++t) listed.push_back(t);
  std::ranges::sort(listed);
  listed.erase(std::unique(listed.begin(), listed.end()), listed.end());
  return listed;
}

}  // namespace kvatlas::methods::mpcache_parts

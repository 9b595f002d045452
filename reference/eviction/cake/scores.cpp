#include "reference/eviction/cake/scores.hpp"

#include <algorithm>

#include "core/arith.hpp"
#include "core/arith64.hpp"
#include "reference/primitives/attention.hpp"
#include "reference/primitives/eviction/allocators.hpp"
#include "reference/primitives/eviction/per_head.hpp"
#include "reference/primitives/pooling.hpp"

namespace kvatlas::methods::cake_parts {

using eviction::of_heads;

namespace {

/// Weights of the window's queries on the slots before it, one row a query, of one query head.
std::vector<std::vector<float>> window_rows(const Scene& scene, const Array& keys, int q_head) {
  const std::int64_t n = keys.dims()[0], window = scene.queries.dim(1);
  std::vector<std::vector<float>> rows;
  for (std::int64_t i = 0; i < window; ++i) {
    const std::int64_t seen = n - window + i + 1;
    std::vector<float> x(static_cast<std::size_t>(seen)), p(x.size());
    logits(scene.queries.row(q_head, i), keys.view().slice(0, 0, seen), logit_scale(scene.c), x);
    softmax_weights(x, softmax_part(x, View<const float>(nullptr, {seen, 0})), p);
    p.resize(static_cast<std::size_t>(n - window));
    rows.push_back(std::move(p));
  }
  return rows;
}

struct MeanAndVariance {
  double mean = 0, variance = 0;  // unbiased
};
MeanAndVariance of_column(const std::vector<std::vector<float>>& rows, std::size_t t) {
  MeanAndVariance m;
  for (const auto& row : rows) m.mean += static_cast<double>(row[t]);
  m.mean /= static_cast<double>(rows.size());
  for (const auto& row : rows) m.variance += (static_cast<double>(row[t]) - m.mean) * (static_cast<double>(row[t]) - m.mean);
  m.variance = rows.size() > 1 ? m.variance / static_cast<double>(rows.size() - 1) : 0.0;
  return m;
}

}  // namespace

double preference(const Weights& w, const Scene& scene) {
  double entropy = 0, variance = 0;
  for (int h = 0; h < scene.rows.heads(); ++h) {
    const Array keys = scene.rows.keys(h);
    for (int g = 0; g < scene.c.q_per_kv(); ++g) {
      const auto rows = window_rows(scene, keys, h * scene.c.q_per_kv() + g);
      for (const auto& row : rows)
        for (const float a : row) entropy -= static_cast<double>(a) * num::log(static_cast<double>(a) + 1e-10);
      for (std::size_t t = 0; t < rows.front().size(); ++t) variance += of_column(rows, t).variance;
    }
  }
  return entropy > 0 && variance > 0 ? num::pow(entropy, 1 / w.tau1) * num::pow(variance, 1 / w.tau2) : 0.0;
}

Scores token_scores(const Weights& w, Tokens protected_window, const Scene& scene) {
  return of_heads(scene, [&](int h) {
    const Array keys = scene.rows.keys(h);
    const std::size_t candidates = static_cast<std::size_t>(std::max<std::int64_t>(0, keys.dims()[0] - protected_window.value));
    std::vector<std::vector<float>> heads;
    for (int g = 0; g < scene.c.q_per_kv(); ++g) {
      const auto rows = window_rows(scene, keys, h * scene.c.q_per_kv() + g);
      std::vector<float>& scores = heads.emplace_back(candidates);
      for (std::size_t t = 0; t < candidates; ++t) {
        const MeanAndVariance m = of_column(rows, t);
        scores[t] = static_cast<float>(m.mean + (scene.prompt ? w.gamma * m.variance : 0.0));
      }
    }
    return pooled_mean(heads, w.kernel);
  });
}

std::vector<float> pooled_mean(const std::vector<std::vector<float>>& heads, int kernel) {
  std::vector<double> sum(heads.front().size(), 0.0);
  for (const auto& head : heads) {
    const std::vector<float> pooled = pool(head, Pooling::avg, kernel);
    for (std::size_t t = 0; t < sum.size(); ++t) sum[t] += static_cast<double>(pooled[t]);
  }
  std::vector<float> scores;
  for (const double x : sum) scores.push_back(static_cast<float>(x / static_cast<double>(heads.size())));
  return scores;
}

Counts layer_rows(const std::vector<double>& asked, std::int64_t rows, Tokens budget, Tokens observation_window, bool cascade) {
  const std::int64_t window = observation_window.value, most = rows - window;
  const std::int64_t total = (budget.value - window) * static_cast<std::int64_t>(asked.size());
  Counts kept(asked.size(), most);
  for (std::size_t seen = cascade ? 1 : asked.size(); seen <= asked.size(); ++seen) {
    const Counts now = eviction::share_by_preference({asked.begin(), asked.begin() + static_cast<std::ptrdiff_t>(seen)}, total, most);
    for (std::size_t l = 0; l < seen; ++l) kept[l] = std::min(kept[l], now[l]);
  }
  for (std::int64_t& k : kept) k += window;
  return kept;
}

}  // namespace kvatlas::methods::cake_parts

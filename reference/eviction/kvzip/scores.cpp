#include "reference/eviction/kvzip/scores.hpp"

#include <algorithm>
#include <functional>

#include "reference/primitives/attention.hpp"

namespace kvatlas::methods::kvzip_parts {

std::vector<Piece> pieces_of(std::int64_t rows, std::int64_t sinks, std::int64_t chunk) {
  std::vector<Piece> pieces;
  for (std::int64_t first = sinks; first < rows; first += chunk)
    pieces.push_back({.sinks = sinks, .first = first, .end = std::min(rows, first + chunk)});
  return pieces;
}

std::vector<float> recall_scores(const LayerClass& c, int kv_head, View<const float> q, View<const float> own, View<const float> k, const Piece& piece,
                                 const AttentionMask& mask) {
  const float scale = logit_scale(c);
  const std::int64_t m = q.dim(1), cached = piece.sinks + piece.size();
  const auto part = [](std::vector<float>& x, std::int64_t first, std::int64_t n) { return std::span(x).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(n)); };
  std::vector<float> scores(static_cast<std::size_t>(piece.size()), 0.0F), x, weights;
  for (int g = 0; g < c.q_per_kv(); ++g)
    for (std::int64_t i = 0; i < m; ++i) {
      const auto query = q.row(kv_head * c.q_per_kv() + g, i);
      x.resize(static_cast<std::size_t>(cached + m));
      logits(query, k.slice(0, 0, piece.sinks), scale, part(x, 0, piece.sinks));
      logits(query, k.slice(0, piece.first, piece.size()), scale, part(x, piece.sinks, piece.size()));
      logits(query, own, scale, part(x, cached, m));
      std::int64_t seen = cached;
      for (std::int64_t j = 0; j < m; ++j)
        if (mask.sees(i, j)) x[static_cast<std::size_t>(seen++)] = x[static_cast<std::size_t>(cached + j)];
      x.resize(static_cast<std::size_t>(seen));
      weights.resize(x.size());
      softmax_weights(x, softmax_part(x, View<const float>(nullptr, {seen, 0})), weights);
      for (std::size_t t = 0; t < scores.size(); ++t) scores[t] = std::max(scores[t], weights[static_cast<std::size_t>(piece.sinks) + t]);
    }
  return scores;
}

std::int64_t share_of(std::int64_t n, double keep_fraction) { return static_cast<std::int64_t>(static_cast<double>(n) * keep_fraction); }

namespace {

/// Ascending places of the pairs that stay.
Slots best(const std::vector<float>& scores, double keep_fraction, bool strictly) {
  const auto n = static_cast<std::int64_t>(scores.size());
  if (!strictly || keep_fraction >= 1) return top_k(scores, share_of(n, keep_fraction));
  std::vector<float> order = scores;
  std::ranges::sort(order, std::greater<>{});
  const float threshold = order[static_cast<std::size_t>(std::max<std::int64_t>(share_of(n, keep_fraction) - 1, 0))];
  Slots stay;
  for (std::int64_t i = 0; i < n; ++i)
    if (scores[static_cast<std::size_t>(i)] > threshold) stay.push_back(i);
  return stay;
}

}  // namespace

std::vector<std::vector<Slots>> choose(const std::vector<std::vector<std::vector<float>>>& scores, double keep_fraction, Selection selection) {
  std::vector<std::vector<Slots>> stay;
  for (const auto& layer : scores) stay.emplace_back(layer.size());
  std::vector<float> pool;
  struct Row {
    std::size_t layer, head;
    std::int64_t first;  // of the pool
  };
  std::vector<Row> rows;
  const auto settle = [&] {
    if (pool.empty()) return;
    std::size_t row = 0;
    for (const std::int64_t at : best(pool, keep_fraction, selection == Selection::released)) {
      while (row + 1 < rows.size() && rows[row + 1].first <= at) ++row;
      stay[rows[row].layer][rows[row].head].push_back(at - rows[row].first);
    }
    pool.clear();
    rows.clear();
  };
  for (std::size_t l = 0; l < scores.size(); ++l) {
    for (std::size_t h = 0; h < scores[l].size(); ++h) {
      rows.push_back({l, h, static_cast<std::int64_t>(pool.size())});
      pool.insert(pool.end(), scores[l][h].begin(), scores[l][h].end());
      if (selection == Selection::head) settle();
    }
    if (selection == Selection::layer) settle();
  }
  settle();
  return stay;
}

}  // namespace kvatlas::methods::kvzip_parts

// What MPCache measures and chooses: which prompt tokens the prompt's tail looks at, and which clusters of rows a query attends to.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/layer_graph.hpp"
#include "core/view.hpp"
#include "reference/primitives/selection.hpp"

namespace kvatlas::methods::mpcache_parts {

/// Largest weight that any query of the tail gives each token, a weight being the mean over all query heads. The softmax runs over all tokens, later
/// ones too, of q.k without the scale 1 / sqrt(k_dim), as in the released code. Means in float64, heads ascending, rounded once.
/// q        [q_heads, tail, k_dim] after RoPE
/// keys     by kv head, [rows, k_dim] after RoPE
/// returns  [rows]
std::vector<float> tail_scores(const LayerClass& c, View<const float> q, const std::vector<Array>& keys);

/// Channel-wise maximum, then minimum, of the keys [first, first + n).
std::vector<float> bounds(View<const float> keys, std::int64_t first, std::int64_t n);

/// alpha q.max + (1 - alpha) q.min, float64 in ascending channels, rounded once.
float similarity(std::span<const float> q, std::span<const float> bounds, double alpha);

/// How a query chooses among `rows` rows in clusters of `cluster` tokens, and of half as many.
struct Choice {
  int cluster = 32;
  double coarse_keep = 0.5, fine_keep = 0.2;
  bool shifts_padding = false;  // of a last fine cluster that is not full the released code attends to as many newest rows as it lacks
};

/// Similarity of cluster `index` of clusters of `size` tokens.
using SimilarityOf = std::function<float(std::int64_t size, std::int64_t index)>;

/// Rows that are attended, ascending: of the coarse clusters the best share, the first and, if it is not full, the last; of their halves the best share of
/// all halves, the first and, if the last coarse cluster is not full, the last. Shares are cut to whole numbers; equal: the lower.
Slots chosen_rows(const Choice& how, std::int64_t rows, const SimilarityOf& similarity);

}  // namespace kvatlas::methods::mpcache_parts

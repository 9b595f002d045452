// What every cache does with a step before its own work (round to the dtype, rotate), and plain attention of the new
// tokens over rows that a cache has decoded.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <vector>

#include "core/rope.hpp"
#include "reference/cache.hpp"

namespace kvatlas {

/// One rotary table a layer class, found by layer.
class Rotary {
 public:
  Rotary() = default;
  explicit Rotary(const CacheShape& shape);
  const RopeTable& of(int layer) const { return tables_[of_layer_.at(layer)]; }

 private:
  std::vector<RopeTable> tables_;
  std::map<int, std::size_t> of_layer_;
};

/// A step after the door: inputs rounded to the dtype; q and k rotated at their positions and rounded again.
struct PreparedStep {
  Array q;      // [q_heads, n, k_dim] after RoPE
  Array k_pre;  // [kv_heads, n, k_dim] before RoPE
  Array k;      // [kv_heads, n, k_dim] after RoPE
  Array v;      // [kv_heads, n, v_dim]; for latent rows the prefix of k
  Array q_pre;  // [q_heads, n, k_dim] before RoPE
  std::int64_t n = 0;
};

/// Checks the step (check_step) and prepares it.
PreparedStep prepare_step(const CacheShape& shape, const Rotary& rotary, int layer, const StepInput& step,
                          const View<float>& out);

/// Called with the softmax weights of one query over rows [first_row, first_row + weights.size()).
/// Rows that a tree mask hides have weight 0.
using WeightSink = std::function<void(int q_head, std::int64_t query, std::int64_t first_row, std::span<const float> weights)>;

/// Attention of the n new tokens over the rows of one kv head, for all query heads of its group.
/// k, v  [rows, dim]; the last n rows are the new tokens, in order. A class window counts rows, the query's own included.
/// q     [q_heads, n, k_dim] prepared queries; out [q_heads, n, v_dim]
void attend_new(const LayerClass& c, int kv_head, View<const float> q, View<const float> k, View<const float> v,
                const AttentionMask& mask, View<const float> sinks, View<float> out, const WeightSink& weights = {});

/// Rounds every value to the dtype, in place.
void round_all(Dtype dtype, std::span<float> values);

}  // namespace kvatlas

// Who attends in a forward pass: plain attention over everything, a method's cache, or one of these under observation.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/rope.hpp"
#include "reference/cache.hpp"

namespace kvatlas::models {

/// One sequence's attention in all layers. Same contract as KvCache::forward.
class Attention {
 public:
  virtual ~Attention() = default;
  virtual void forward(int layer, const StepInput& step, View<float> out) = 0;
};

/// Through a method: whatever the cache stores, chooses and reads.
class MethodAttention final : public Attention {
 public:
  explicit MethodAttention(std::unique_ptr<KvCache> cache) : cache_(std::move(cache)) {}
  void forward(int layer, const StepInput& step, View<float> out) override { cache_->forward(layer, step, out); }
  KvCache& cache() { return *cache_; }
  const KvCache& cache() const { return *cache_; }

 private:
  std::unique_ptr<KvCache> cache_;
};

/// The plain path: keeps every row in float32, rounded to the shape's dtype, and attends in the canonical order. Gives the bits
/// of the method `full` and is quicker, because rows are not decoded anew.
class PlainAttention final : public Attention {
 public:
  explicit PlainAttention(CacheShape shape);
  ~PlainAttention() override;
  void forward(int layer, const StepInput& step, View<float> out) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// What an observer sees of one layer's step. Views end with the call. Keys and queries carry no 1/sqrt(dim).
struct Observation {
  int layer = 0;
  View<const std::int64_t> positions;   // [n]
  View<const float> q_before, k_before;  // [heads, n, dim] before RoPE, as the layer made them
  View<const float> q, k;               // after RoPE
  View<const float> v;                  // [kv_heads, n, dim]
  View<const float> out;                // [q_heads, n, dim] what the queries read
};
using Observer = std::function<void(const Observation&)>;

/// Lets somebody watch. The attention inside, and so the pass, do not change.
class ObservedAttention final : public Attention {
 public:
  ObservedAttention(const CacheShape& shape, Attention& inside, Observer observer);
  void forward(int layer, const StepInput& step, View<float> out) override;

 private:
  const CacheShape shape_;
  std::vector<RopeTable> tables_;  // one a class
  Attention& inside_;
  Observer observer_;
};

/// Attention mass as methods count it: how much of the softmax of the last `queries` queries goes to each key, summed in fixed
/// point so that no order matters.
/// q        [q_heads, n, dim], k [kv_heads, n, dim] of a whole prompt, after RoPE
/// returns  [q_heads, n]
Array attention_mass(const LayerClass& c, View<const float> q, View<const float> k, std::int64_t queries);

}  // namespace kvatlas::models

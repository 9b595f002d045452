// The cache of an eviction rule.
#pragma once

#include <string>
#include <vector>

#include "reference/primitives/eviction/rule.hpp"
#include "reference/primitives/window_scores.hpp"

namespace kvatlas::eviction {

class Cache final : public TokenCache {
 public:
  Cache(Rule rule, const CacheShape& shape);

  /// Rows by content: "kept_rows", and their "key_elements" and "value_elements"; empty unless the rule says content_counts.
  ContentCounts content_counts() const override;

 private:
  void check(const Layer& l, const StepInput& step) const override;
  void step(Layer& l, const PreparedStep& p, const StepInput& in, View<float> out) override;
  void after_prompt(Layer& l) override;
  std::int64_t restorable(const Layer& l) const override;
  void crop_more(Layer& l, std::int64_t removed) override;
  void buffers_more(const Layer& l, std::vector<NamedBuffer>& out) const override;
  void before_load(TokenRows& rows, const std::string& prefix, std::span<const NamedBuffer> saved) const override;
  void check_loaded(const Layer& l, std::span<const NamedBuffer> saved) const override;
  void load_more(std::span<const NamedBuffer> saved) override;
  bool prompt_open() const override;

  /// Lets tokens of a layer leave if it holds more than its quota. `queries` [q_heads, W, k_dim].
  void evict(Layer& l, View<const float> queries, std::int64_t quota) const;
  Scene scene_of(const Layer& l, View<const float> queries) const;
  /// Kept slots of one head whose rule has no score: first and newest.
  void keep_ends(Layer& l, int head, std::int64_t rows) const;
  /// The step at the positions that follow the slots of this layer.
  PreparedStep at_slots(const Layer& l, const PreparedStep& p) const;
  /// Asks all layers and gives each its limit.
  void allocate();
  std::int64_t quota_of(const Layer& l) const;
  /// Steps are due by count, or by a budget that is overrun.
  bool due(Layer& l, std::int64_t tokens);

  struct Beside {
    Place place;
    QueryWindow queries;      // the prompt's last ones; empty once it has ended
    QueryMoments moments;     // of the prompt; empty once it has ended
    std::int64_t limit = 0;   // rows that the layers' shares have left it; 0: none
    std::int64_t clock = 0;   // steps since the last event of an interval, or since the prompt ended
  };
  Rule rule_;
  std::vector<Beside> beside_;  // by ordinal of the cache
};

}  // namespace kvatlas::eviction

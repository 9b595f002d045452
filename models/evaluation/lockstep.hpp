// Many methods read the same text at once: they share the dense prompt as long as they compute the same, then decode in one
// batch, so that the weights are read once for all. No figure depends on who else is in the batch.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "models/runtime/transformer.hpp"

namespace kvatlas::models {

/// A method under test: opens a fresh cache for each text.
struct Candidate {
  std::string label;
  std::function<std::unique_ptr<KvCache>()> open;
};

/// One text under all candidates. Sequence 0 is the plain cache, sequence 1 + i is candidate i.
class Lockstep {
 public:
  /// The transformer and the candidates must live as long as this.
  Lockstep(const Transformer& transformer, CacheShape shape, const std::vector<Candidate>& candidates);

  std::size_t sequences() const { return sequences_.size(); }
  /// Why a candidate takes no further part: its cache refused a step. Sequence 0 never fails.
  const std::optional<std::string>& failure(std::size_t sequence) const { return sequences_[sequence].failure; }
  /// Ends a candidate's part from outside, for what it predicted or kept; the first reason stays.
  void fail(std::size_t sequence, const std::string& why);

  /// The whole prompt as one chunk, every layer's q, k, v shared with the plain pass until a method's own attention differs from
  /// it by a bit; then end_prefill. Only at the start of a text.
  void prefill(std::span<const TokenId> tokens);
  /// New tokens for every sequence; `compress` calls end_prefill behind them.
  /// returns  states [sequences * tokens, hidden] after the last norm, sequence by sequence; zeros for failed ones
  Array step(std::span<const TokenId> tokens, bool compress = false);

  Ledger ledger(std::size_t sequence) const;
  /// ||read - plain|| / ||plain|| of all attention outputs of the steps so far, by layer.
  std::vector<double> attention_error(std::size_t sequence) const;

 private:
  struct Sequence {
    std::unique_ptr<Attention> attention;
    KvCache* cache = nullptr;  // none: the plain one
    std::optional<std::string> failure;
    std::vector<double> difference, norm;  // sums of squares by layer
  };
  /// Calls body(i) for all sequences that still run; what it throws ends that sequence.
  void for_each(const std::function<void(std::size_t)>& body);

  const Transformer& transformer_;
  CacheShape shape_;
  std::vector<Sequence> sequences_;
  std::int64_t position_ = 0;
};

}  // namespace kvatlas::models

// A cache that is shown a part of its prompt: tokens that were chosen beforehand, at new positions, and all that follows them.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "reference/cache.hpp"
#include "reference/primitives/prompt_choice.hpp"

namespace kvatlas {

/// The whole prompt is handed in. Its chosen tokens go to `inner` at positions 0, 1, 2, ...; the others are stored nowhere, nobody sees
/// them, and their outputs are zeros. As rows mix in attention alone, a model that runs all tokens computes for the chosen ones what it
/// would compute of the short prompt. Positions of the prompt must be 0, 1, 2, ...; token t behind the prompt of S tokens follows at
/// position t - S + chosen.
class SelectedPrompt final : public KvCache {
 public:
  /// `name` for sentences of refusals
  SelectedPrompt(const char* name, ChosenPrompt chosen, std::unique_ptr<KvCache> inner, CacheShape shape);

  void forward(int layer, const StepInput& step, View<float> out) override;
  /// throws InvalidArgument when tokens of the chosen prompt have not come
  void end_prefill() override;
  void crop(Tokens length) override;
  void check_crop(Tokens length) const override;
  std::vector<NamedBuffer> buffers() const override { return inner_->buffers(); }
  void load(std::span<const NamedBuffer> saved) override;
  ContentCounts content_counts() const override { return inner_->content_counts(); }
  Tokens kept(int layer, int kv_head) const override { return inner_->kept(layer, kv_head); }

 private:
  std::int64_t chosen_before(std::int64_t token) const;  // how many chosen tokens precede it
  void check_order(int layer, const StepInput& step) const;
  Tokens inner_length(Tokens length) const;

  const char* name_;
  ChosenPrompt chosen_;
  std::unique_ptr<KvCache> inner_;
  CacheShape shape_;
  bool ended_ = false;  // or loaded: then it is not known
};

/// Sentence for layers whose tokens cannot be shown at other positions.
std::optional<std::string> why_not_shown(const CacheShape& shape);

/// The history of the inner cache: `budget` tokens of the prompt at most, and `behind` of its end that are always shown.
History shown_history(const History& h, Tokens budget, Tokens behind = Tokens(0));

}  // namespace kvatlas

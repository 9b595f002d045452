// The cache of a method that decides which tokens stay: rows per layer and head, attention in canonical order, saving,
// rolling back. A method says what a step does to one layer and what happens when the prompt ends.
//
// A method of this kind is a scorer (window_scores.hpp, words of token_rows.hpp), a reducer over queries and the heads of a
// group, a pooler (pooling.hpp), protected slots and a selector (selection.hpp), a fate of the rest (TokenRows::keep and
// set_value), the positions of its keys, and a trigger: after_step or after_prompt.
#pragma once

#include <array>
#include <optional>
#include <string_view>
#include <vector>

#include "reference/primitives/step.hpp"
#include "reference/primitives/token_rows.hpp"

namespace kvatlas {

/// Whose rows are stored. Released codes that repeat keys and values for every query head before caching keep an own set,
/// and own bytes, for each query head.
enum class Granularity : std::uint8_t { kv_head, query_head };
inline constexpr std::array<std::string_view, 2> kGranularityNames{"kv_head", "query_head"};

/// The shape whose rows are stored: with query_head every query head owns rows.
CacheShape stored_shape(const CacheShape& shape, Granularity granularity);

/// The same for a look at it: copies the shape only where it differs. `shape` must outlive it.
class StoredShape {
 public:
  StoredShape(const CacheShape& shape, Granularity granularity) : shape_(shape) {
    if (granularity != Granularity::kv_head) copy_ = stored_shape(shape, granularity);
  }
  const CacheShape& operator*() const { return copy_ ? *copy_ : shape_; }

 private:
  const CacheShape& shape_;
  std::optional<CacheShape> copy_;
};

/// Sentence for classes that a method of rows cannot serve: windows, latent and pooled rows.
std::optional<std::string> why_not_rows(const CacheShape& shape);

class TokenCache : public KvCache {
 public:
  void forward(int layer, const StepInput& step, View<float> out) final;
  void end_prefill() final;
  void check_crop(Tokens length) const final;
  void crop(Tokens length) final;
  std::vector<NamedBuffer> buffers() const final;
  /// While a prompt runs, buffers() hold an empty one, "layer0/open_prompt": its name is the information, and load() resumes there.
  void load(std::span<const NamedBuffer> saved) final;
  Tokens kept(int layer, int kv_head) const final;

 protected:
  struct Layer {
    int index = 0;             // of the model
    std::size_t ordinal = 0;   // of this cache: 0, 1, ...
    LayerClass c;              // as stored: kv_heads own rows
    TokenRows rows;
    std::optional<std::int64_t> seen;  // tokens that have come; unknown after load() until the next step
    std::int64_t appended = 0;         // tokens that came since the prompt ended, or since load()
  };

  TokenCache(CacheShape shape, Granularity granularity);

  /// One step of one layer: store, attend, update. `p` has rows for every head that owns rows; refusals come before this.
  virtual void step(Layer& layer, const PreparedStep& p, const StepInput& step, View<float> out) = 0;
  /// throws Unsupported for a step that the method has no rule for; nothing has been stored yet
  virtual void check(const Layer&, const StepInput&) const {}
  /// The prompt is complete.
  virtual void after_prompt(Layer&) {}
  /// How many of the newest tokens can be taken back without a trace.
  virtual std::int64_t restorable(const Layer&) const { return 0; }
  virtual void crop_more(Layer&, std::int64_t /*removed*/) {}
  /// State beside the rows. load_more() checks everything before it changes anything.
  virtual void buffers_more(const Layer&, std::vector<NamedBuffer>&) const {}
  virtual void load_more(std::span<const NamedBuffer>) {}
  /// Words that saved rows do not carry (dropped when the prompt ended) go before the rows are loaded.
  virtual void before_load(TokenRows&, const std::string& /*prefix*/, std::span<const NamedBuffer>) const {}
  /// throws InvalidArgument for loaded rows of one layer that the method cannot have made: heads of unequal counts
  virtual void check_loaded(const Layer& layer, std::span<const NamedBuffer> saved) const;
  /// Whether loaded state can only stem from a prompt that has not ended, whatever the saved buffers say.
  virtual bool prompt_open() const { return false; }

  /// Attention of the new tokens (the newest rows of every head) over post-RoPE rows.
  void attend(const Layer& layer, const PreparedStep& p, const StepInput& step, View<float> out, const WeightSink& weights = {}) const;

  std::vector<Layer>& layers() { return layers_; }
  const std::vector<Layer>& layers() const { return layers_; }
  const CacheShape& shape() const { return shape_; }
  const Rotary& rotary() const { return rotary_; }
  bool prompt_done() const { return prompt_done_; }
  /// Tokens that follow belong to a prompt again.
  void reopen_prompt() { prompt_done_ = false; }
  /// Whether saved buffers say that their prompt has not ended.
  static bool holds_open_prompt(std::span<const NamedBuffer> saved);
  static std::string prefix(const Layer& layer);

 private:
  std::size_t find(int layer) const;

  CacheShape shape_;
  Granularity granularity_;
  Rotary rotary_;
  std::vector<Layer> layers_;
  bool prompt_done_ = false;
};

}  // namespace kvatlas

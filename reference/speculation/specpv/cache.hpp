// The two caches of SpecPV for one sequence: all rows with block summaries, and a small contiguous copy
// [sinks | retrieved blocks | newest window | buffer] in which drafts are verified between two full passes.
#pragma once

#include <optional>
#include <vector>

#include "reference/primitives/step.hpp"
#include "reference/primitives/token_rows.hpp"

namespace kvatlas::partial_verify {

enum class Score : std::uint8_t { code, quest };

/// Score of one query for a block with these largest and smallest channels: `code` takes the larger of two whole products,
/// `quest` the larger product channel by channel, which no key of the block exceeds.
float block_score(Score score, std::span<const float> q, std::span<const float> high, std::span<const float> low);

/// Sizes in tokens; `tree` counts drafted tokens.
struct Layout {
  std::int64_t block = 16, sinks = 32, retrieved_blocks = 256, window = 128, buffer = 20, tree = 60;
  bool partial = true;
  Score score = Score::code;

  /// Rows before the buffer; the partial cache comes into use once the text is longer.
  std::int64_t fixed() const { return sinks + retrieved_blocks * block + window; }
  /// All rows: the buffer holds accepted tokens, the last accepted one and a tree.
  std::int64_t rows() const { return fixed() + buffer + tree + 1; }
  /// Whole blocks between the sinks and the window of a text of `tokens`.
  std::int64_t blocks(std::int64_t tokens) const { return tokens <= sinks + window ? 0 : (tokens - sinks - window) / block; }
};

/// How the next step is verified.
enum class Verify : std::uint8_t {
  append,   // no draft: tokens of the text come in
  full,     // over all rows
  refresh,  // over all rows; the partial cache is made anew from this step's queries
  partial,  // over the partial cache
};

class Cache final : public KvCache {
 public:
  Cache(CacheShape shape, const Layout& layout);

  /// The next forward() of every layer holds `missing` tokens of the text whose rows only the partial cache has, then the
  /// last accepted token and its draft tree. accept() ends the step.
  void begin(Verify how, std::int64_t missing);
  /// Keeps these of the step's tokens behind the missing ones (0 = the last accepted token), ascending, and forgets the rest.
  void accept(std::span<const std::int64_t> kept);
  /// Takes back a step that some layers may not have seen.
  void abandon();

  std::int64_t full_tokens() const;   // rows in the full cache
  std::int64_t buffered() const { return buffered_; }
  bool refreshed() const { return refreshed_ > 0; }
  const Layout& layout() const { return layout_; }

  void forward(int layer, const StepInput& step, View<float> out) override;
  /// Tokens back to the last refresh can be taken away; a refresh itself stays.
  void check_crop(Tokens length) const override;
  void crop(Tokens length) override;
  std::vector<NamedBuffer> buffers() const override;
  void load(std::span<const NamedBuffer> saved) override;
  ContentCounts content_counts() const override;
  Tokens kept(int layer, int kv_head) const override;

 private:
  struct Layer {
    int index = 0;
    const LayerClass* c = nullptr;
    TokenRows rows;              // of the whole text
    SlotBytes k_max, k_min;      // a record a block behind the sinks
    SlotBytes part_k, part_v;    // layout().rows() records
  };
  std::int64_t verified() const { return refreshed_ > 0 ? refreshed_ + buffered_ : full_tokens(); }
  Layer& at(int layer);
  void attend_full(Layer& l, const PreparedStep& p, const StepInput& step, View<float> out);
  void attend_partial(Layer& l, const PreparedStep& p, const StepInput& step, View<float> out);
  void put_partial(Layer& l, int head, std::int64_t slot, std::span<const float> k, std::span<const float> v) const;
  void refresh(Layer& l, const PreparedStep& p) const;
  std::vector<float> block_scores(const Layer& l, int head, const PreparedStep& p, std::int64_t blocks) const;
  void zero_partial(std::int64_t from);
  void trim_summaries();

  CacheShape shape_;
  Layout layout_;
  Rotary rotary_;
  std::vector<Layer> layers_;
  std::int64_t refreshed_ = 0;  // tokens of the text at the last refresh; 0: the partial cache holds nothing
  std::int64_t buffered_ = 0;   // accepted tokens in the buffer

  Verify how_ = Verify::append;  // of the step between begin() and accept()
  std::int64_t missing_ = 0, base_ = 0;
};

}  // namespace kvatlas::partial_verify

// A decoder in float32 on the CPU, driven by its layer graph. Attention is somebody else's: the pass hands q, k and v before
// RoPE to an `Attention` and takes back what the queries read. No bit depends on chunks, batches or threads.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "models/runtime/architecture.hpp"
#include "models/runtime/attention.hpp"
#include "models/runtime/packed_matrix.hpp"
#include "models/runtime/weight_set.hpp"
#include "reference/faces.hpp"

namespace kvatlas::models {

/// New tokens of one sequence: `tokens` rows of a batch, at positions first_position, first_position + 1, ...
struct Segment {
  Attention* attention = nullptr;
  std::int64_t tokens = 0;
  std::int64_t first_position = 0;
};

/// What a layer hands to attention, one row a token of the batch.
struct AttentionInputs {
  Array normed;  // [tokens, hidden] the normed residual stream, which W_q, W_k, W_v read
  Array qkv;     // [tokens, q_heads * dim + 2 * kv_heads * dim]: queries, keys, values; after bias and norm, before RoPE
};

class Transformer {
 public:
  /// Packs all matrices; the set stays for rows of the embedding.
  /// throws   InvalidArgument when a tensor is missing or has another shape than the graph needs
  Transformer(Architecture architecture, WeightSet weights);

  const Architecture& architecture() const { return architecture_; }
  const Model& model() const { return architecture_.model; }
  int layers() const { return static_cast<int>(layers_.size()); }
  const LayerClass& layer_class(int layer) const { return *layers_[static_cast<std::size_t>(layer)].c; }
  std::int64_t hidden() const { return architecture_.model.hidden; }
  std::int64_t vocabulary() const { return architecture_.model.vocabulary; }
  /// W_o of every layer as trained inputs name it: layer<l>.w_o [hidden, q_heads * v_dim].
  TensorMap output_weights() const;

  /// The whole pass over new tokens of some sequences: states [tokens, hidden] after the last norm.
  /// throws   InvalidArgument for a token outside the vocabulary, and what the segments' attention throws
  Array forward(std::span<const TokenId> tokens, std::span<const Segment> batch) const;
  /// Logits [tokens, vocabulary] of such states.
  void logits(View<const float> states, View<float> out) const;

  // The steps of forward(), for passes that share some of them.
  Array embed(std::span<const TokenId> tokens) const;                               // [tokens, hidden]
  AttentionInputs attention_inputs(int layer, View<const float> x) const;
  /// attended [tokens, q_heads * v_dim]
  Array attend(int layer, const AttentionInputs& inputs, std::span<const Segment> batch) const;
  /// One segment of it, whose tokens start at `row`; out [its tokens, q_heads * v_dim].
  void attend_segment(int layer, const AttentionInputs& inputs, std::int64_t row, const Segment& segment, View<float> out) const;
  void finish_layer(int layer, View<const float> attended, View<float> x) const;    // updates x in place
  Array last_norm(View<const float> x) const;

 private:
  struct Layer {
    const LayerClass* c = nullptr;
    std::vector<float> attention_norm, ffn_norm, post_attention_norm, post_ffn_norm, q_norm, k_norm;  // absent: empty
    std::vector<float> qkv_bias, o_bias;
    PackedMatrix qkv, o, gate_up, down;
  };

  Architecture architecture_;
  WeightSet weights_;
  const SourceTensor* embedding_ = nullptr;
  std::vector<Layer> layers_;
  std::vector<float> last_norm_;
  PackedMatrix head_;
};

}  // namespace kvatlas::models

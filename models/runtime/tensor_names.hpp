// What files call the tensors of a decoder: Hugging Face checkpoints and GGUF.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/runtime/weight_set.hpp"

namespace kvatlas::models {

/// A tensor's place in the model.
enum class Slot : std::uint8_t {
  embedding, last_norm, head,
  attention_norm, q, k, v, o, q_bias, k_bias, v_bias, o_bias, q_norm, k_norm, post_attention_norm,
  ffn_norm, gate, up, down, post_ffn_norm
};

/// Finds tensors whichever of the two schemes a set of weights uses.
class TensorNames {
 public:
  /// throws InvalidArgument when no embedding is found under any known name
  explicit TensorNames(const WeightSet& weights);

  bool has(Slot slot, int layer) const { return weights_.find(name(slot, layer)) != nullptr; }
  /// throws InvalidArgument when it is missing or of another shape
  const SourceTensor& at(Slot slot, int layer, const std::vector<std::int64_t>& shape) const;
  std::string name(Slot slot, int layer) const;

 private:
  const WeightSet& weights_;
  bool gguf_ = false;
  std::string prefix_;          // Hugging Face: "model.", "language_model.model.", ""
  bool sandwich_norms_ = false;  // Hugging Face: post_attention_layernorm norms the attention's output, not the FFN's input
};

}  // namespace kvatlas::models

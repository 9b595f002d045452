// What files call the tensors of a decoder: Hugging Face checkpoints and GGUF.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
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
  /// post_norms  post_attention_layernorm norms the attention's output, not the FFN's input
  /// throws InvalidArgument when no embedding is found under any known name
  TensorNames(const WeightSet& weights, bool post_norms);

  /// throws InvalidArgument when it is missing or of another shape
  const SourceTensor& at(Slot slot, int layer, const std::vector<std::int64_t>& shape) const;
  std::string name(Slot slot, int layer) const;
  /// A tensor of this decoder that at() was never asked for; empty when there is none. Buffers that files carry along, other towers of a
  /// multimodal checkpoint and the second copy of a tied head do not count.
  std::string unused(bool tied_head) const;

 private:
  const WeightSet& weights_;
  bool gguf_ = false;
  std::string prefix_;          // Hugging Face: "model.", "language_model.model.", ""
  bool post_norms_ = false;
  mutable std::set<std::string, std::less<>> used_;
};

}  // namespace kvatlas::models

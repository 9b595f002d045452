#include "models/runtime/tensor_names.hpp"

#include <string_view>

#include "core/errors.hpp"

namespace kvatlas::models {

namespace {

struct Names {
  std::string_view hugging_face, gguf;  // behind the prefix and the layer
};

constexpr Names names_of(Slot slot) {
  switch (slot) {
    case Slot::embedding: return {"embed_tokens.weight", "token_embd.weight"};
    case Slot::last_norm: return {"norm.weight", "output_norm.weight"};
    case Slot::head: return {"lm_head.weight", "output.weight"};
    case Slot::attention_norm: return {"input_layernorm.weight", "attn_norm.weight"};
    case Slot::q: return {"self_attn.q_proj.weight", "attn_q.weight"};
    case Slot::k: return {"self_attn.k_proj.weight", "attn_k.weight"};
    case Slot::v: return {"self_attn.v_proj.weight", "attn_v.weight"};
    case Slot::o: return {"self_attn.o_proj.weight", "attn_output.weight"};
    case Slot::q_bias: return {"self_attn.q_proj.bias", "attn_q.bias"};
    case Slot::k_bias: return {"self_attn.k_proj.bias", "attn_k.bias"};
    case Slot::v_bias: return {"self_attn.v_proj.bias", "attn_v.bias"};
    case Slot::o_bias: return {"self_attn.o_proj.bias", "attn_output.bias"};
    case Slot::q_norm: return {"self_attn.q_norm.weight", "attn_q_norm.weight"};
    case Slot::k_norm: return {"self_attn.k_norm.weight", "attn_k_norm.weight"};
    case Slot::post_attention_norm: return {"", "post_attention_norm.weight"};
    case Slot::ffn_norm: return {"post_attention_layernorm.weight", "ffn_norm.weight"};
    case Slot::gate: return {"mlp.gate_proj.weight", "ffn_gate.weight"};
    case Slot::up: return {"mlp.up_proj.weight", "ffn_up.weight"};
    case Slot::down: return {"mlp.down_proj.weight", "ffn_down.weight"};
    case Slot::post_ffn_norm: return {"post_feedforward_layernorm.weight", "post_ffw_norm.weight"};
  }
  return {};
}

std::string spell(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t n : shape) text += cat(text.empty() ? "" : ", ", n);
  return cat("[", text, "]");
}

}  // namespace

TensorNames::TensorNames(const WeightSet& weights, bool post_norms) : weights_(weights), post_norms_(post_norms) {
  if (weights.find("token_embd.weight") != nullptr) {
    gguf_ = true;
    return;
  }
  for (const char* prefix : {"model.", "language_model.model.", "model.language_model.", ""})
    if (weights.find(cat(prefix, "embed_tokens.weight")) != nullptr) {
      prefix_ = prefix;
      return;
    }
  throw InvalidArgument("the weights have no embedding: neither token_embd.weight (GGUF) nor model.embed_tokens.weight (Hugging Face)");
}

std::string TensorNames::name(Slot slot, int layer) const {
  const Names n = names_of(slot);
  if (gguf_) return layer < 0 ? std::string(n.gguf) : cat("blk.", layer, ".", n.gguf);
  std::string_view stem = n.hugging_face;
  if (slot == Slot::ffn_norm && post_norms_) stem = "pre_feedforward_layernorm.weight";
  if (slot == Slot::post_attention_norm) stem = "post_attention_layernorm.weight";
  if (slot == Slot::head) {
    for (const char* prefix : {"", "language_model.", "model."})
      if (std::string whole = cat(prefix, stem); weights_.find(whole) != nullptr) return whole;
    return std::string(stem);
  }
  return layer < 0 ? cat(prefix_, stem) : cat(prefix_, "layers.", layer, ".", stem);
}

const SourceTensor& TensorNames::at(Slot slot, int layer, const std::vector<std::int64_t>& shape) const {
  const std::string called = name(slot, layer);
  const SourceTensor* t = weights_.find(called);
  if (t == nullptr) throw InvalidArgument(cat("tensor ", called, " is missing, must be ", spell(shape)));
  if (t->shape != shape) throw InvalidArgument(cat("tensor ", called, " is ", spell(t->shape), ", must be ", spell(shape)));
  used_.insert(called);
  return *t;
}

std::string TensorNames::unused(bool tied_head) const {
  for (const auto& [name, tensor] : weights_.tensors()) {
    if (used_.contains(name) || name.ends_with("rotary_emb.inv_freq") || name == "rope_freqs.weight") continue;  // the config said it all
    if (tied_head && name.ends_with("lm_head.weight")) continue;
    bool tower = false;
    for (const char* part : {"vision_tower.", "vision_model.", "visual.", "multi_modal_projector.", "audio_tower."})
      tower = tower || name.starts_with(part) || name.starts_with(cat("model.", part));
    if (!tower) return name;
  }
  return {};
}

}  // namespace kvatlas::models

// The steps of importing a config.json: what a family leaves unsaid, rotary embedding, attention, FFN of one layer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/config_fields.hpp"
#include "models/model.hpp"

namespace kvatlas::models {

// Far above any published model, low enough that no count of weights or bytes leaves 64 bits.
inline constexpr std::int64_t kMaxWidth = std::int64_t{1} << 18;  // hidden, FFN, low ranks
inline constexpr std::int64_t kMaxHeads = std::int64_t{1} << 12;
inline constexpr std::int64_t kMaxHeadDim = std::int64_t{1} << 14;
inline constexpr std::int64_t kMaxAllHeads = std::int64_t{1} << 20;  // heads times their width
inline constexpr std::int64_t kMaxVocabulary = std::int64_t{1} << 24;
inline constexpr std::int64_t kMaxContext = std::int64_t{1} << 28;  // tokens
inline constexpr std::int64_t kMaxLayers = 1024;
inline constexpr std::int64_t kMaxExperts = std::int64_t{1} << 14;

/// Who reads `sliding_window` when the config names no layer types.
enum class WindowRule : std::uint8_t {
  every_layer,  // as soon as the field is not null
  pattern,      // all but every n-th layer
  opt_in,       // only with use_sliding_window, from layer max_window_layers on
};

/// What the code of a model type fixes and its config does not say.
struct Family {
  std::string_view model_type;
  int norms = 2;  // of one layer, over the hidden width
  bool layer_norm_bias = false;
  bool gated = true;  // FFN of gate, up, down; else up, down
  bool tied = false;  // when tie_word_embeddings is absent
  bool qkv_bias = false;
  bool o_bias = false;
  bool ffn_bias = false;
  bool head_bias = false;
  bool qk_norm = false;
  bool expert_bias = false;  // router and experts carry biases
  bool sinks = false;        // a learned logit for each query head
  WindowRule window = WindowRule::every_layer;
  int window_pattern = 0;
  RopeLayout layout = RopeLayout::half_split;
};

/// The family of a model type, or null for one that we do not know.
const Family* find_family(std::string_view model_type);

/// Widths that all layers of a model share.
struct Dims {
  std::int64_t hidden = 0;
  std::int64_t vocabulary = 0;
  int layers = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  Dtype dtype = Dtype::bf16;
};

/// throws InvalidArgument when heads and their width together are beyond what counts are made for.
void check_all_heads(std::string_view heads_field, std::int64_t heads, std::int64_t head_dim);

enum class LayerKind : std::uint8_t { full, sliding, linear };

/// Weights of one part of a layer, and what the part caches.
struct Weights {
  std::vector<MatMul> matrices;
  std::vector<VectorWeights> vectors;
};

/// Rotary embeddings of the layers that see everything and of those behind a window.
struct Ropes {
  RopeSpec full;
  RopeSpec sliding;
  double score_factor = 1.0;  // DeepSeek's YaRN multiplies q.k as well
};

/// `rotary_width` channels of a key may rotate, from `first_channel` on.
struct RopePlace {
  int rotary_width = 0;
  int first_channel = 0;
};
Ropes import_ropes(Fields& config, const Family& family, RopePlace place, Model& model);

/// The kind of every layer: layer_types, linear layers, or the family's rule for windows.
std::vector<LayerKind> import_layer_kinds(Fields& config, const Family& family, int layers);

/// An attention layer: keys and values, or one latent row where kv_lora_rank is given.
struct AttentionPart {
  LayerClass row;  // without layers, window or rope
  Weights weights;
  Weights without_kv;  // of a layer that reads another layer's rows
};
AttentionPart import_attention(Fields& config, const Family& family, const Dims& dims, Model& model);

/// A layer of linear attention: Gated DeltaNet or Kimi Delta Attention.
struct Linear {
  LayerClass row;
  Weights weights;
};
Linear import_linear(Fields& config, const Dims& dims);

/// The FFN of every layer: `dense` or `experts` as `is_sparse` says.
struct Ffn {
  LayerGroup dense;  // only ffn fields, matrices and vectors are filled
  LayerGroup experts;
  std::vector<bool> is_sparse;
};
Ffn import_ffn(Fields& config, const Family& family, const Dims& dims);

/// Fills the cache's classes and the groups of `model`, layer by layer.
void import_layers(Fields& config, const Family& family, const Dims& dims, Model& model);

/// Bits of the published weights: quantization_config, else the dtype.
WeightBits import_weight_bits(Fields& config, Dtype dtype, std::vector<std::string>& warnings);

}  // namespace kvatlas::models

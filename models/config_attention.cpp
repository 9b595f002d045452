// Attention and linear-attention layers of a config: matrices, rows and states.
#include <algorithm>
#include <cmath>

#include "core/errors.hpp"
#include "models/config_parts.hpp"

namespace kvatlas::models {

namespace {

int head_width(Fields& config, std::string_view field, std::int64_t min = 1) {
  return static_cast<int>(config.required({field}, min, kMaxHeadDim));
}

// One shared latent for all heads (MLA): down projections, up projections, and the rotary part beside the latent.
AttentionPart latent_attention(Fields& config, const Dims& dims) {
  const int latent = head_width(config, "kv_lora_rank");
  const int rope = head_width(config, "qk_rope_head_dim", 0);
  const int nope = head_width(config, "qk_nope_head_dim");
  const int v_dim = head_width(config, "v_head_dim");
  const auto q_rank = config.integer("q_lora_rank", 1, kMaxWidth);
  const bool bias = config.boolean("attention_bias").value_or(false);
  if (rope % 2 != 0) throw InvalidArgument(cat("qk_rope_head_dim is ", rope, ", must be even"));
  check_all_heads("num_attention_heads", dims.q_heads, std::max(nope + rope, nope + v_dim));
  const std::int64_t q_width = std::int64_t{dims.q_heads} * (nope + rope);

  AttentionPart a;
  a.row = LayerClass{
      .kind = RowKind::latent, .q_heads = dims.q_heads, .kv_heads = 1, .k_dim = latent + rope, .v_dim = latent};
  auto& m = a.weights.matrices;
  auto& v = a.weights.vectors;
  if (q_rank) {
    m.push_back({.name = "q_a", .n = *q_rank, .k = dims.hidden, .bias = bias});
    v.push_back({"q_a_norm", *q_rank});
    m.push_back({.name = "q_b", .n = q_width, .k = *q_rank});
  } else {
    m.push_back({.name = "q", .n = q_width, .k = dims.hidden});
  }
  m.push_back({.name = "kv_a", .n = latent + rope, .k = dims.hidden, .bias = bias});
  v.push_back({"kv_a_norm", latent});
  m.push_back({.name = "kv_b", .n = std::int64_t{dims.q_heads} * (nope + v_dim), .k = latent});
  m.push_back({.name = "o", .n = dims.hidden, .k = std::int64_t{dims.q_heads} * v_dim, .bias = bias});
  a.row.score_scale = 1.0 / std::sqrt(static_cast<double>(nope + rope));

  if (const auto index_heads = config.integer("index_n_heads", 1, kMaxHeads)) {
    const int index_dim = head_width(config, "index_head_dim");
    if (!q_rank) throw InvalidArgument("q_lora_rank is missing, must be given where index_n_heads is");
    a.row.index_dim = index_dim;
    a.row.index_bytes = static_cast<double>(index_dim + 4 * ceil_div(index_dim, 128));  // e4m3, fp32 scale per 128
    a.row.index_top_k = static_cast<int>(config.required({"index_topk"}, 1, kMaxContext));
    m.push_back({.name = "index_q", .n = *index_heads * index_dim, .k = *q_rank});
    m.push_back({.name = "index_k", .n = index_dim, .k = dims.hidden});
    m.push_back({.name = "index_weights", .n = *index_heads, .k = dims.hidden});
    v.push_back({"index_k_norm", 2 * std::int64_t{index_dim}});
  }
  a.without_kv = a.weights;
  return a;
}

}  // namespace

void check_all_heads(std::string_view heads_field, std::int64_t heads, std::int64_t head_dim) {
  if (heads * head_dim > kMaxAllHeads)
    throw InvalidArgument(
        cat(heads_field, " is ", heads, " with ", head_dim, " channels each, must together be at most ", kMaxAllHeads));
}

AttentionPart import_attention(Fields& config, const Family& family, const Dims& dims, Model& model) {
  if (config.has("kv_lora_rank")) return latent_attention(config, dims);
  const bool all_biases = config.boolean("attention_bias").value_or(false);
  const bool qkv_bias = config.boolean("qkv_bias").value_or(family.qkv_bias) || all_biases;
  const bool o_bias = family.o_bias || all_biases;
  const bool qk_norm = config.boolean("use_qk_norm").value_or(family.qk_norm);
  const std::int64_t q_width = std::int64_t{dims.q_heads} * dims.head_dim;
  const std::int64_t kv_width = std::int64_t{dims.kv_heads} * dims.head_dim;
  // Qwen3-Next's q also makes a gate for each output channel; later models say so in a field.
  const bool output_gate = config.boolean("attn_output_gate").value_or(family.model_type == "qwen3_next");

  AttentionPart a;
  a.row = LayerClass{.q_heads = dims.q_heads,
                     .kv_heads = dims.kv_heads,
                     .k_dim = dims.head_dim,
                     .v_dim = dims.head_dim,
                     .attention_sink = family.sinks};
  const MatMul q{.name = output_gate ? "q_and_gate" : "q",
                 .n = output_gate ? 2 * q_width : q_width,
                 .k = dims.hidden,
                 .bias = qkv_bias};
  const MatMul o{.name = "o", .n = dims.hidden, .k = q_width, .bias = o_bias};
  a.weights.matrices = {q,
                        {.name = "k", .n = kv_width, .k = dims.hidden, .bias = qkv_bias},
                        {.name = "v", .n = kv_width, .k = dims.hidden, .bias = qkv_bias},
                        o};
  a.without_kv.matrices = {q, o};
  if (qk_norm) {
    a.weights.vectors = {{"q_norm", dims.head_dim}, {"k_norm", dims.head_dim}};
    a.without_kv.vectors = {{"q_norm", dims.head_dim}};
  }
  if (family.sinks)
    for (Weights* w : {&a.weights, &a.without_kv}) w->vectors.push_back({"sinks", dims.q_heads});
  model.qkv_bias = qkv_bias;
  model.qk_norm = qk_norm;
  if (const auto scalar = config.number("query_pre_attn_scalar", 1e-6, 1e9); scalar && *scalar != dims.head_dim)
    a.row.score_scale = 1.0 / std::sqrt(*scalar);
  return a;
}

// States are kept in fp32 and the last taps of the short convolutions in the model's dtype, as the published kernels
// do.
Linear import_linear(Fields& config, const Dims& dims) {
  Linear out;
  auto& m = out.weights.matrices;
  auto& v = out.weights.vectors;
  const auto add = [&](const char* name, std::int64_t n, std::int64_t k) {
    m.push_back({.name = name, .n = n, .k = k, .role = Role::state});
  };
  std::int64_t taps = 0, channels = 0, state = 0;
  if (auto kda = config.object("linear_attn_config")) {
    const std::int64_t heads = kda->required({"num_heads"}, 1, kMaxHeads);
    const std::int64_t dim = kda->required({"head_dim"}, 1, kMaxHeadDim);
    check_all_heads(kda->full_name("num_heads"), heads, dim);
    taps = kda->required({"short_conv_kernel_size"}, 1, 64);
    const std::int64_t all = heads * dim;
    channels = 3 * all;
    state = heads * dim * dim;
    for (const char* name : {"q", "k", "v"}) add(name, all, dims.hidden);
    add("decay_a", dim, dims.hidden);
    add("decay_b", all, dim);
    add("beta", heads, dims.hidden);
    add("gate_a", dim, dims.hidden);
    add("gate_b", all, dim);
    add("o", dims.hidden, all);
    v = {{"conv", channels * taps}, {"decay", heads}, {"dt_bias", all}, {"o_norm", dim}};
    out.row = LayerClass{.kind = RowKind::state,
                         .q_heads = static_cast<int>(heads),
                         .kv_heads = static_cast<int>(heads),
                         .k_dim = static_cast<int>(dim),
                         .v_dim = static_cast<int>(dim)};
  } else {
    const std::int64_t k_heads = config.required({"linear_num_key_heads"}, 1, kMaxHeads);
    const std::int64_t v_heads = config.required({"linear_num_value_heads"}, 1, kMaxHeads);
    const std::int64_t k_dim = head_width(config, "linear_key_head_dim");
    const std::int64_t v_dim = head_width(config, "linear_value_head_dim");
    check_all_heads("linear_num_value_heads", v_heads, std::max(k_dim, v_dim));
    taps = config.required({"linear_conv_kernel_dim"}, 1, 64);
    if (v_heads % k_heads != 0)
      throw InvalidArgument(
          cat("linear_num_value_heads is ", v_heads, ", must be a multiple of linear_num_key_heads (", k_heads, ")"));
    channels = 2 * k_heads * k_dim + v_heads * v_dim;
    state = v_heads * k_dim * v_dim;
    add("qkvz", channels + v_heads * v_dim, dims.hidden);
    add("beta_and_decay", 2 * v_heads, dims.hidden);
    add("o", dims.hidden, v_heads * v_dim);
    v = {{"conv", channels * taps}, {"decay", v_heads}, {"dt_bias", v_heads}, {"o_norm", v_dim}};
    out.row = LayerClass{.kind = RowKind::state,
                         .q_heads = static_cast<int>(v_heads),
                         .kv_heads = static_cast<int>(k_heads),
                         .k_dim = static_cast<int>(k_dim),
                         .v_dim = static_cast<int>(v_dim)};
  }
  out.row.state = Bytes(state * 4 + channels * (taps - 1) * bytes_of(dims.dtype));
  return out;
}

}  // namespace kvatlas::models

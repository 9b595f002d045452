// Puts the imported parts together: every layer into a class of equal rows and a group of equal weights.
#include <algorithm>

#include "core/errors.hpp"
#include "models/config_parts.hpp"

namespace kvatlas::models {

namespace {

// Puts a layer into the class of equal rows, or opens one.
void add_layer(CacheShape& cache, LayerClass row, int layer, bool owns_rows) {
  for (LayerClass& c : cache.classes) {
    LayerClass bare = c;
    bare.layers.clear();
    bare.readers.clear();
    if (bare != row) continue;
    (owns_rows ? c.layers : c.readers).push_back(layer);
    return;
  }
  if (!owns_rows)
    throw InvalidArgument(
        cat("num_kv_shared_layers makes layer ", layer, " read rows that no earlier layer of its kind keeps"));
  row.layers.push_back(layer);
  cache.classes.push_back(std::move(row));
}

void add_to_group(std::vector<LayerGroup>& groups, LayerGroup layer, int index) {
  for (LayerGroup& g : groups) {
    layer.layers = g.layers;
    if (layer != g) continue;
    g.layers.push_back(index);
    return;
  }
  layer.layers = {index};
  groups.push_back(std::move(layer));
}

// 1 where a layer rotates its keys; some models leave every fourth layer without positions.
std::vector<std::int64_t> import_rotating(Fields& config, int layers) {
  auto given = config.integers("no_rope_layers", 0, 1);
  config.ignore("no_rope_layer_interval");
  if (!given) return std::vector<std::int64_t>(static_cast<std::size_t>(layers), 1);
  if (given->size() != static_cast<std::size_t>(layers))
    throw InvalidArgument(
        cat("no_rope_layers has ", given->size(), " entries, must have num_hidden_layers (", layers, ")"));
  return *given;
}

// Linear position bias instead of rotation; MPT keeps it in attn_config and defaults to it.
bool import_alibi(Fields& config, const Family& family, const Dims& dims, Model& model) {
  const bool given = config.boolean("alibi").value_or(family.model_type == "mpt");
  auto attn = config.object("attn_config");
  if (!attn) return given;
  for (const char* field : {"attn_impl", "attn_pdrop", "attn_uses_sequence_id", "clip_qkv", "prefix_lm"})
    attn->ignore(field);
  if (attn->integer("kv_n_heads", 1, kMaxHeads).value_or(dims.q_heads) != dims.q_heads ||
      attn->text("attn_type").value_or("multihead_attention") != "multihead_attention" ||
      attn->boolean("qk_ln").value_or(false))
    throw Unsupported("attn_config names grouped heads or qk_ln, must describe multihead_attention without qk_ln");
  if (const auto slope = attn->number("alibi_bias_max", 0.0, 1e9); slope && *slope != 8.0)
    model.warnings.push_back(cat("attn_config.alibi_bias_max is ", *slope, "; slopes for 8 are assumed"));
  return attn->boolean("alibi").value_or(given);
}

}  // namespace

void import_layers(Fields& config, const Family& family, const Dims& dims, Model& model) {
  const std::vector<LayerKind> kinds = import_layer_kinds(config, family, dims.layers);
  const auto any = [&](LayerKind k) { return std::find(kinds.begin(), kinds.end(), k) != kinds.end(); };
  const AttentionPart attention = import_attention(config, family, dims, model);
  const Linear linear = any(LayerKind::linear) ? import_linear(config, dims) : Linear{};
  const Ffn ffn = import_ffn(config, family, dims);
  Tokens window{0};
  if (const auto given = config.integer("sliding_window", 1, kMaxContext)) window = Tokens(*given);
  if (any(LayerKind::sliding) && window.value == 0)
    throw InvalidArgument(
        cat("sliding_window is missing, must be an integer from 1 to ", kMaxContext, " where layers see a window"));

  const bool latent = attention.row.kind == RowKind::latent;
  const int first = latent ? attention.row.v_dim : 0;
  const int rotary_width = latent ? attention.row.k_dim - first : dims.head_dim;
  Ropes ropes = import_ropes(config, family, {.rotary_width = rotary_width, .first_channel = first}, model);
  const bool alibi = import_alibi(config, family, dims, model);
  const bool without_rotation = alibi || config.boolean("mla_use_nope").value_or(false);
  if (without_rotation) ropes.full = ropes.sliding = RopeSpec{};

  const std::vector<std::int64_t> rotating = import_rotating(config, dims.layers);
  const std::int64_t shared = config.integer("num_kv_shared_layers", 0, dims.layers - 1).value_or(0);
  for (int l = 0; l < dims.layers; ++l) {
    const auto i = static_cast<std::size_t>(l);
    const bool owns_rows = l < dims.layers - shared || kinds[i] == LayerKind::linear;
    LayerClass row = kinds[i] == LayerKind::linear ? linear.row : attention.row;
    if (kinds[i] != LayerKind::linear) {
      row.rope = kinds[i] == LayerKind::sliding ? ropes.sliding : ropes.full;
      if (rotating[i] == 0) row.rope = RopeSpec{};
      row.alibi = alibi;
      if (latent) row.score_scale *= ropes.score_factor;
      // A window as long as the trained context never drops a token (Phi-3 128K names one of 262,144).
      const bool binds = !model.trained_context || window < *model.trained_context;
      if (kinds[i] == LayerKind::sliding && binds) row.window = window;
    }
    add_layer(model.cache, std::move(row), l, owns_rows);

    LayerGroup group = ffn.is_sparse[i] ? ffn.experts : ffn.dense;
    const Weights& mixer = kinds[i] == LayerKind::linear ? linear.weights
                           : owns_rows                   ? attention.weights
                                                         : attention.without_kv;
    group.matrices.insert(group.matrices.begin(), mixer.matrices.begin(), mixer.matrices.end());
    group.vectors.insert(group.vectors.begin(), mixer.vectors.begin(), mixer.vectors.end());
    group.vectors.push_back({"norms", family.norms * dims.hidden * (family.layer_norm_bias ? 2 : 1)});
    add_to_group(model.groups, std::move(group), l);
  }
}

}  // namespace kvatlas::models

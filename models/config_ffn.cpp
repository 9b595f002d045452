// Feed-forward layers of a config, dense and of experts, and the bits of published weights.
#include <algorithm>

#include "core/errors.hpp"
#include "models/config_parts.hpp"

namespace kvatlas::models {

namespace {

struct Shape {
  std::string prefix{};
  std::int64_t width = 0;
  int count = 1;
  int active = 1;
  Role role = Role::ffn;
  bool bias = false;
};

void add_ffn(LayerGroup& group, const Shape& s, bool gated, std::int64_t hidden) {
  const auto add = [&](const char* name, std::int64_t n, std::int64_t k) {
    group.matrices.push_back({.name = s.prefix + name,
                              .n = n,
                              .k = k,
                              .count = s.count,
                              .active = s.active,
                              .role = s.role,
                              .bias = s.bias});
  };
  if (gated) add("gate", s.width, hidden);
  add("up", s.width, hidden);
  add("down", hidden, s.width);
}

// Width of the dense FFN: a field, or a multiple of the hidden width where a family writes that.
std::optional<std::int64_t> dense_width(Fields& config, const Family& family, const Dims& dims) {
  if (const auto given = config.any({"intermediate_size", "n_inner", "ffn_dim"}, 1, kMaxWidth)) return given;
  if (const auto ratio = config.integer("expansion_ratio", 1, 1024)) return *ratio * dims.hidden;
  if (!family.gated) return 4 * dims.hidden;  // n_inner null in GPT-J, expansion_ratio absent in MPT
  return std::nullopt;
}

// Layers that hold experts: DeepSeek names the dense first ones, Qwen a step and exceptions.
std::vector<bool> sparse_layers(Fields& config, int layers) {
  const std::int64_t first = config.integer("first_k_dense_replace", 0, kMaxLayers).value_or(0);
  const std::int64_t every = config.integer("moe_layer_freq", 1, kMaxLayers).value_or(1);
  const std::int64_t step = config.integer("decoder_sparse_step", 1, kMaxLayers).value_or(1);
  const std::vector<std::int64_t> dense =
      config.integers("mlp_only_layers", 0, layers - 1).value_or(std::vector<std::int64_t>{});
  std::vector<bool> sparse;
  for (std::int64_t l = 0; l < layers; ++l)
    sparse.push_back(l >= first && l % every == 0 && (l + 1) % step == 0 &&
                     std::find(dense.begin(), dense.end(), l) == dense.end());
  return sparse;
}

}  // namespace

Ffn import_ffn(Fields& config, const Family& family, const Dims& dims) {
  Ffn out;
  const auto width = dense_width(config, family, dims);
  const std::int64_t experts =
      config.any({"num_experts", "num_local_experts", "n_routed_experts"}, 0, kMaxExperts).value_or(0);
  const bool bias = config.boolean("mlp_bias").value_or(family.ffn_bias);
  out.is_sparse = experts > 0 ? sparse_layers(config, dims.layers)
                              : std::vector<bool>(static_cast<std::size_t>(dims.layers), false);
  const bool any_dense = std::find(out.is_sparse.begin(), out.is_sparse.end(), false) != out.is_sparse.end();
  if (any_dense) {
    if (!width) throw InvalidArgument(cat("intermediate_size is missing, must be an integer from 1 to ", kMaxWidth));
    out.dense.ffn_width = *width;
    add_ffn(out.dense, {.width = *width, .bias = bias}, family.gated, dims.hidden);
  }
  if (experts == 0) return out;

  const std::int64_t active =
      config.required({"num_experts_per_tok", "num_experts_per_token", "experts_per_token"}, 1, kMaxExperts);
  if (active > experts)
    throw InvalidArgument(
        cat("num_experts_per_tok is ", active, ", must be at most the number of experts (", experts, ")"));
  const auto own = config.integer("moe_intermediate_size", 1, kMaxWidth);
  if (!own && !width)
    throw InvalidArgument(cat("moe_intermediate_size is missing, must be an integer from 1 to ", kMaxWidth));
  LayerGroup& g = out.experts;
  g.experts = static_cast<int>(experts);
  g.active_experts = static_cast<int>(active);
  g.expert_width = own ? *own : *width;
  const std::int64_t shared = config.any({"n_shared_experts", "num_shared_experts"}, 0, kMaxExperts).value_or(0);
  const auto shared_width = config.integer("shared_expert_intermediate_size", 0, kMaxWidth);
  g.shared_width = shared_width ? *shared_width : shared * g.expert_width;

  g.matrices.push_back(
      {.name = "router", .n = experts, .k = dims.hidden, .role = Role::router, .bias = family.expert_bias});
  // Selection without an auxiliary loss adds a learned bias to each expert's score.
  if (config.text("topk_method").value_or("") == "noaux_tc" || family.model_type == "kimi_linear")
    g.vectors.push_back({"router_correction", experts});
  add_ffn(g, {"expert_", g.expert_width, g.experts, g.active_experts, Role::expert, family.expert_bias}, true,
          dims.hidden);
  if (g.shared_width > 0) {
    add_ffn(g, {.prefix = "shared_", .width = g.shared_width, .role = Role::shared_expert}, true, dims.hidden);
    if (shared_width)  // Qwen's shared expert is gated by one learned scalar product
      g.matrices.push_back({.name = "shared_gate_logit", .n = 1, .k = dims.hidden, .role = Role::shared_expert});
  }
  return out;
}

WeightBits import_weight_bits(Fields& config, Dtype dtype, std::vector<std::string>& warnings) {
  WeightBits bits;
  bits.role.fill(8.0 * bytes_of(dtype));
  bits.vectors = 8.0 * bytes_of(dtype);
  auto quantization = config.object("quantization_config");
  if (!quantization) return bits;
  const std::string method = quantization->text("quant_method").value_or("unnamed");
  const auto layer_matrices = [&](double b) {
    for (const Role r : {Role::attention, Role::ffn, Role::expert, Role::shared_expert, Role::state}) bits[r] = b;
  };
  if (method == "mxfp4") {
    bits[Role::expert] = 4.25;  // e2m1 and one e8m0 scale for each 32 weights
  } else if (method == "fp8") {
    const auto block = quantization->integers("weight_block_size", 1, kMaxWidth);
    double area = 0.0;
    if (block && block->size() == 2) area = static_cast<double>((*block)[0] * (*block)[1]);
    layer_matrices(8.0 + (area > 0.0 ? 32.0 / area : 0.0));  // e4m3 and one fp32 scale for each block
  } else if (method == "awq" || method == "gptq") {
    const auto width = static_cast<double>(quantization->required({"bits"}, 2, 8));
    const std::int64_t group = quantization->integer("group_size", -1, kMaxWidth).value_or(128);
    layer_matrices(width + (group > 0 ? (16.0 + width) / static_cast<double>(group) : 0.0));  // fp16 scale, zero point
  } else {
    warnings.push_back(cat("quantization_config.quant_method is \"", method,
                           "\", which is not known; weights are counted at ", bits.vectors, " bits"));
  }
  config.ignore("quantization_config");  // the rest says how the weights were made
  return bits;
}

}  // namespace kvatlas::models

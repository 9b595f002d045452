// Which layer is what: layer types, sliding-window patterns, and the places of linear-attention layers.
#include <algorithm>

#include "core/errors.hpp"
#include "models/config_parts.hpp"

namespace kvatlas::models {

namespace {

std::vector<LayerKind> named_kinds(const std::vector<std::string>& names, int layers) {
  if (names.size() != static_cast<std::size_t>(layers))
    throw InvalidArgument(
        cat("layer_types has ", names.size(), " entries, must have num_hidden_layers (", layers, ")"));
  std::vector<LayerKind> kinds;
  for (const std::string& name : names) {
    if (name == "full_attention" || name == "attention")
      kinds.push_back(LayerKind::full);
    else if (name == "sliding_attention")
      kinds.push_back(LayerKind::sliding);
    else if (name == "linear_attention")
      kinds.push_back(LayerKind::linear);
    else
      throw InvalidArgument(
          cat("layer_types holds \"", name, "\", must be one of full_attention, sliding_attention, linear_attention"));
  }
  return kinds;
}

// Kimi's lists count layers from 1 and together name each layer once.
std::vector<LayerKind> kimi_kinds(Fields& linear, int layers) {
  const auto kda = linear.integers("kda_layers", 1, layers);
  const auto full = linear.integers("full_attn_layers", 1, layers);
  if (!kda || !full)
    throw InvalidArgument(cat(linear.full_name(kda ? "full_attn_layers" : "kda_layers"),
                              " is missing, must be an array of layer numbers from 1"));
  std::vector<int> named(static_cast<std::size_t>(layers), 0);
  std::vector<LayerKind> kinds(static_cast<std::size_t>(layers), LayerKind::full);
  for (const std::int64_t l : *full) ++named[static_cast<std::size_t>(l - 1)];
  for (const std::int64_t l : *kda) {
    ++named[static_cast<std::size_t>(l - 1)];
    kinds[static_cast<std::size_t>(l - 1)] = LayerKind::linear;
  }
  for (int l = 0; l < layers; ++l)
    if (const int times = named[static_cast<std::size_t>(l)]; times != 1)
      throw InvalidArgument(cat("linear_attn_config names layer ", l + 1, " ", times,
                                " times, must name each layer once in kda_layers or full_attn_layers"));
  return kinds;
}

std::vector<LayerKind> windowed_kinds(Fields& config, const Family& family, int layers) {
  const auto use = config.boolean("use_sliding_window");
  const std::int64_t from = config.integer("max_window_layers", 0, kMaxLayers).value_or(0);
  const auto pattern = config.any({"sliding_window_pattern", "_sliding_window_pattern"}, 1, kMaxLayers);
  const bool has_window = config.has("sliding_window");
  std::vector<LayerKind> kinds(static_cast<std::size_t>(layers), LayerKind::full);
  const auto slide_if = [&](const auto& condition) {
    for (int l = 0; l < layers; ++l)
      if (condition(l)) kinds[static_cast<std::size_t>(l)] = LayerKind::sliding;
  };
  if (use && !*use) return kinds;
  if (family.window == WindowRule::pattern || (pattern && has_window)) {
    const std::int64_t period = pattern.value_or(family.window_pattern);
    slide_if([&](int l) { return (l + 1) % period != 0; });
  } else if (family.window == WindowRule::opt_in) {
    if (use && *use) slide_if([&](int l) { return l >= from; });
  } else if (has_window) {
    slide_if([](int) { return true; });
  }
  return kinds;
}

}  // namespace

std::vector<LayerKind> import_layer_kinds(Fields& config, const Family& family, int layers) {
  const std::vector<LayerKind> windowed = windowed_kinds(config, family, layers);
  const auto interval = config.integer("full_attention_interval", 1, kMaxLayers);
  if (const auto names = config.texts("layer_types")) return named_kinds(*names, layers);
  if (auto linear = config.object("linear_attn_config")) return kimi_kinds(*linear, layers);
  if (!interval && !config.has("linear_num_value_heads")) return windowed;
  std::vector<LayerKind> kinds;
  const std::int64_t period = interval.value_or(4);
  for (int l = 0; l < layers; ++l) kinds.push_back((l + 1) % period == 0 ? LayerKind::full : LayerKind::linear);
  return kinds;
}

}  // namespace kvatlas::models

#include "cli/commands/support/same_model.hpp"

#include <cstdlib>

#include "core/errors.hpp"

namespace kvatlas::cli {

namespace {

/// Converters drop the unused rows at the end of an embedding, or add some.
constexpr std::int64_t kPaddedTokens = 128;

std::string differs(const models::Model& record, const std::string& field, auto here, auto there) {
  return cat(field, " is ", here, ", ", record.slug, " has ", there, "; --model must name the model that was run");
}

/// The class that `layer` belongs to; null when the model has no such layer.
const LayerClass* class_at(const CacheShape& shape, int layer) {
  for (const LayerClass& c : shape.classes)
    for (const int l : c.layers)
      if (l == layer) return &c;
  return nullptr;
}

std::optional<std::string> why_not_layer(const models::Model& record, int layer, const LayerClass& here) {
  const LayerClass* there = class_at(record.cache, layer);
  const std::string at = cat(" of layer ", layer);
  if (there == nullptr || there->kind != RowKind::kv) return cat("layer ", layer, " has keys and values, ", record.slug, " has none there; --model must name the model that was run");
  if (here.q_heads != there->q_heads) return differs(record, "q_heads" + at, here.q_heads, there->q_heads);
  if (here.kv_heads != there->kv_heads) return differs(record, "kv_heads" + at, here.kv_heads, there->kv_heads);
  if (here.k_dim != there->k_dim) return differs(record, "head_dim" + at, here.k_dim, there->k_dim);
  if (here.v_dim != there->v_dim) return differs(record, "value width" + at, here.v_dim, there->v_dim);
  if (here.window != there->window) return differs(record, "window" + at, here.window.value, there->window.value);
  return std::nullopt;
}

}  // namespace

std::optional<std::string> why_not_same(const models::Model& record, const models::Model& loaded) {
  if (layers(loaded) != layers(record)) return differs(record, "layers", layers(loaded), layers(record));
  if (loaded.hidden != record.hidden) return differs(record, "hidden", loaded.hidden, record.hidden);
  if (std::abs(loaded.vocabulary - record.vocabulary) > kPaddedTokens) return differs(record, "vocabulary", loaded.vocabulary, record.vocabulary);
  for (const LayerClass& c : loaded.cache.classes)
    for (const int layer : c.layers)
      if (auto why = why_not_layer(record, layer, c)) return why;
  return std::nullopt;
}

std::optional<std::string> why_not_same(const models::Model& record, const models::CapturedSet& captured) {
  for (const models::CapturedPrompt& prompt : captured.prompts)
    for (const LayerClass& c : prompt.shape.classes)
      for (const int layer : c.layers) {
        if (layer >= layers(record)) return differs(record, "layer", layer, cat(layers(record), " layers"));
        if (auto why = why_not_layer(record, layer, c)) return why;
      }
  return std::nullopt;
}

}  // namespace kvatlas::cli

#include "reference/primitives/side_method.hpp"

#include "core/errors.hpp"

namespace kvatlas {

std::optional<std::string> why_not_sides(const CacheShape& shape, std::string_view slug) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind == RowKind::latent || c.kind == RowKind::pooled)
      return cat("a layer keeps ", c.kind == RowKind::latent ? "latent" : "pooled", " rows, must keep keys and values: ", slug, " codes them apart");
    if (c.kind != RowKind::kv) continue;
    if (c.index_bytes > 0) return cat("a layer keeps index rows of ", c.index_bytes, " bytes a token, must keep none: ", slug, " codes keys and values alone");
    if (c.window.value > 0)
      return cat("a layer has a sliding window of ", c.window.value, " tokens, must have none: ", slug, " codes rows together that would leave one by one");
  }
  return std::nullopt;
}

}  // namespace kvatlas

#include "reference/primitives/sides.hpp"

#include "core/errors.hpp"

namespace kvatlas {

std::optional<std::string> why_not_sides(std::string_view slug, const CacheShape& shape, SideLimits limits) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind == RowKind::pooled || (c.kind == RowKind::latent && !limits.latent))
      return cat("a layer keeps ", c.kind == RowKind::latent ? "latent" : "pooled", " rows, must keep keys and values",
                 limits.latent ? " or latent rows" : "");
    if (c.index_bytes > 0)
      return cat("a layer keeps index rows of ", c.index_bytes, " bytes a token, must keep none: ", slug, " codes keys and values alone");
    if (c.window.value > 0 && !limits.window)
      return cat("a layer has a sliding window of ", c.window.value, " tokens, must have none: ", slug, " keeps every row");
  }
  return std::nullopt;
}

}  // namespace kvatlas

// What methods share that code keys and values apart: the width of a side, and the layers that they refuse.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "core/layer_graph.hpp"
#include "core/ledger.hpp"

namespace kvatlas {

/// Width of a row of one side.
inline int dim_of(const LayerClass& c, Side side) { return side == Side::key ? c.k_dim : c.v_dim; }

/// Layers that a method can serve beside those of whole keys and values.
struct SideLimits {
  bool latent = true, window = true;
};
inline constexpr SideLimits kWholeRows{.latent = false, .window = false};

/// Sentence for layers whose rows `slug` cannot code side by side: pooled rows, learned index rows; latent rows and sliding
/// windows unless allowed.
std::optional<std::string> why_not_sides(std::string_view slug, const CacheShape& shape, SideLimits limits = {});

}  // namespace kvatlas

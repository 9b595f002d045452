// Sign sketches of a group of keys: the channels that are largest over the group apart from the others.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/philox.hpp"
#include "core/view.hpp"

namespace kvatlas::qjl {

struct Sketch {
  std::vector<std::uint8_t> outliers;       // channels, largest norm over the group first, of equals the lower
  std::vector<std::uint8_t> bits;           // [tokens, projections] 1 where the projection of the other channels is above 0
  std::vector<std::uint8_t> outlier_bits;   // [tokens, outlier projections]: the first projections, of the outlier channels
  std::vector<float> norms, outlier_norms;  // [tokens] of the key, of its outlier channels
};

/// keys [tokens, dim], projections [m, dim] in rows; norms are roots of lane-tree sums in float32.
Sketch encode(View<const float> keys, View<const float> projections, int outlier_projections, int outlier_channels);

/// Keys [tokens, dim] whose product with a query is the estimate of the paper: sqrt(pi / 2) / m * norm * sum of signed
/// projections, for the outlier channels and the others apart. sqrt(norm^2 - outlier norm^2) is 0 where rounding makes it negative.
void decode(const Sketch& sketch, View<const float> projections, int outlier_projections, View<float> keys);

/// [m, dim]: groups of `dim` orthogonal rows of norm sqrt(dim), each group from normals of its own step of `stream`.
Array make_projections(int projections, int dim, RandomStream stream);

}  // namespace kvatlas::qjl

// Where rows that leave are merged into rows that stay: the kept key of the largest cosine.
#pragma once

#include <vector>

#include "core/view.hpp"
#include "reference/primitives/selection.hpp"

namespace kvatlas {

/// For every slot that leaves, in the order given.
struct Nearest {
  std::vector<float> cosine;  // the largest
  Slots target;               // which of the kept slots has it: an index into them, of equal cosines the lower
};

/// cosine = lane_dot(a, b) / (max(|a|, 1e-12) max(|b|, 1e-12)), norms as roots of lane sums.
/// keys     [rows, k_dim]
/// throws   InvalidArgument if nothing is kept and something leaves
Nearest nearest_keys(View<const float> keys, const Slots& kept, const Slots& leaving);

}  // namespace kvatlas

// Small steps that scorers share.
#pragma once

#include <cmath>
#include <vector>

#include "core/arith.hpp"
#include "core/parallel.hpp"
#include "reference/primitives/eviction/rule.hpp"

namespace kvatlas::eviction {

/// score(head) for every row owner, on the threads.
template <class F>
Scores of_heads(const Scene& scene, F score) {
  Scores scores(static_cast<std::size_t>(scene.rows.heads()));
  parallel_for(scene.rows.heads(), [&](std::int64_t h) { scores[static_cast<std::size_t>(h)] = score(static_cast<int>(h)); });
  return scores;
}

/// Euclidean norm: root of a lane sum.
inline float norm_of(std::span<const float> row) { return std::sqrt(num::lane_dot(row, row)); }

inline std::vector<float> norms_of(const Array& rows) {
  std::vector<float> out(static_cast<std::size_t>(rows.dims()[0]));
  for (std::size_t t = 0; t < out.size(); ++t) out[t] = norm_of(rows.view().row(static_cast<std::int64_t>(t)));
  return out;
}

}  // namespace kvatlas::eviction

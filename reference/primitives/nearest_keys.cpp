#include "reference/primitives/nearest_keys.hpp"

#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"

namespace kvatlas {

Nearest nearest_keys(View<const float> keys, const Slots& kept, const Slots& leaving) {
  if (kept.empty() && !leaving.empty()) throw InvalidArgument("no row is kept: there is nothing to merge into");
  const auto norm = [&](std::int64_t slot) { return num::max(std::sqrt(num::lane_dot(keys.row(slot), keys.row(slot))), 1e-12F); };
  std::vector<float> norms;
  for (const std::int64_t slot : kept) norms.push_back(norm(slot));
  Nearest nearest;
  for (const std::int64_t slot : leaving) {
    const float own = norm(slot);
    float best = -2.0F;  // below any cosine
    std::int64_t at = 0;
    for (std::size_t i = 0; i < kept.size(); ++i) {
      const float cosine = num::lane_dot(keys.row(slot), keys.row(kept[i])) / (own * norms[i]);
      if (cosine <= best) continue;
      best = cosine;
      at = static_cast<std::int64_t>(i);
    }
    nearest.cosine.push_back(best);
    nearest.target.push_back(at);
  }
  return nearest;
}

}  // namespace kvatlas

#include "reference/primitives/weighted_merge.hpp"

#include "core/arith.hpp"
#include "core/errors.hpp"

namespace kvatlas {

void blend_into(std::span<float> receiver, float receiver_weight, std::span<const float> row, float weight) {
  KV_ASSERT(receiver.size() == row.size(), "rows of one width");
  KV_ASSERT(receiver_weight >= 0.0F && weight >= 0.0F, "weights of a blend are not negative");
  const float total = weight + receiver_weight;
  const float w = total == 0.0F ? 0.5F : weight / total;
  for (std::size_t c = 0; c < row.size(); ++c) {
    const float a = receiver[c], b = row[c];
    receiver[c] = num::clamp(num::fma(w, b - a, a), num::min(a, b), num::max(a, b));
  }
}

}  // namespace kvatlas

#include "reference/primitives/pooling.hpp"

#include <algorithm>

#include "core/arith.hpp"
#include "core/errors.hpp"

namespace kvatlas {

std::vector<float> pool(std::span<const float> scores, Pooling pooling, int kernel) {
  if (kernel < 1 || kernel % 2 == 0) throw InvalidArgument(cat("kernel is ", kernel, ", must be odd and positive"));
  const std::int64_t n = static_cast<std::int64_t>(scores.size()), half = kernel / 2;
  std::vector<float> pooled(scores.size());
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t first = std::max<std::int64_t>(0, i - half), last = std::min(n - 1, i + half);
    float value = pooling == Pooling::avg ? 0.0F : -num::infinity();
    for (std::int64_t j = first; j <= last; ++j) {
      const float s = scores[static_cast<std::size_t>(j)];
      value = pooling == Pooling::avg ? value + s : num::max(value, s);
    }
    pooled[static_cast<std::size_t>(i)] = pooling == Pooling::avg ? value / static_cast<float>(kernel) : value;
  }
  return pooled;
}

std::vector<float> pool_zero_padded(std::span<const float> scores, Pooling pooling, int kernel) {
  if (kernel < 1) throw InvalidArgument(cat("kernel is ", kernel, ", must be positive"));
  const std::int64_t n = static_cast<std::int64_t>(scores.size()), before = (kernel - 1) / 2;
  std::vector<float> pooled(scores.size());
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t first = i - before, last = first + kernel - 1;
    const bool beyond = first < 0 || last >= n;
    float value = pooling == Pooling::avg || beyond ? 0.0F : -num::infinity();
    for (std::int64_t j = std::max<std::int64_t>(0, first); j <= std::min(n - 1, last); ++j) {
      const float s = scores[static_cast<std::size_t>(j)];
      value = pooling == Pooling::avg ? value + s : num::max(value, s);
    }
    pooled[static_cast<std::size_t>(i)] = pooling == Pooling::avg ? value / static_cast<float>(kernel) : value;
  }
  return pooled;
}

}  // namespace kvatlas

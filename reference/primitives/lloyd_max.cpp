#include "reference/primitives/lloyd_max.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <mutex>
#include <utility>

#include "core/arith64.hpp"
#include "core/errors.hpp"

namespace kvatlas {

std::span<const float> gaussian_levels(int bits) {
  // Computed to six digits with the density's own conditional means.
  static constexpr std::array<float, 2> kOne{-0.797885F, 0.797885F};
  static constexpr std::array<float, 4> kTwo{-1.510418F, -0.452780F, 0.452780F, 1.510418F};
  static constexpr std::array<float, 8> kThree{-2.151946F, -1.343909F, -0.756005F, -0.245094F, 0.245094F, 0.756005F, 1.343909F, 2.151946F};
  static constexpr std::array<float, 16> kFour{-2.732590F, -2.069017F, -1.618046F, -1.256231F, -0.942340F, -0.656759F, -0.388048F, -0.128395F,
                                               0.128395F,  0.388048F,  0.656759F,  0.942340F,  1.256231F,  1.618046F,  2.069017F,  2.732590F};
  switch (bits) {
    case 1: return kOne;
    case 2: return kTwo;
    case 3: return kThree;
    case 4: return kFour;
    default: break;
  }
  KV_ASSERT(false, "Gaussian levels are known for 1 to 4 bits");
  return {};
}

namespace {

std::vector<float> iterate_levels(int dim, int bits) {
  constexpr int kIterations = 200, kIntervals = 200;
  const double sigma = 1.0 / std::sqrt(static_cast<double>(dim));
  const std::size_t n = std::size_t{1} << bits;
  const auto density = [sigma](double x) { return num::exp(-x * x / (2.0 * sigma * sigma)); };  // its factor cancels in a mean
  std::vector<double> level(n);
  const double low = -3.5 * sigma, high = 3.5 * sigma;
  for (std::size_t i = 0; i < n; ++i) level[i] = low + (high - low) * (static_cast<double>(i) + 0.5) / static_cast<double>(n);
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    std::vector<double> next(n);
    double moved = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double a = i == 0 ? 3.0 * low : (level[i - 1] + level[i]) / 2.0;
      const double b = i + 1 == n ? 3.0 * high : (level[i] + level[i + 1]) / 2.0;
      const double width = (b - a) / kIntervals;
      double mass = 0, moment = 0;  // ascending nodes; products and sums rounded apart
      for (int j = 0; j <= kIntervals; ++j) {
        const double x = a + j * width, weight = (j == 0 || j == kIntervals ? 0.5 : 1.0) * density(x);
        mass += weight;
        moment += weight * x;
      }
      next[i] = mass > 1e-15 ? moment / mass : level[i];
      moved = std::max(moved, std::fabs(next[i] - level[i]));
    }
    level = next;
    if (moved < 1e-10) break;
  }
  return {level.begin(), level.end()};
}

}  // namespace

std::vector<float> lloyd_levels(int dim, int bits) {
  static std::mutex guard;
  static std::map<std::pair<int, int>, std::vector<float>> known;  // a pure function of its arguments that takes milliseconds
  const std::lock_guard lock(guard);
  const auto [at, fresh] = known.try_emplace({dim, bits});
  if (fresh) at->second = iterate_levels(dim, bits);
  return at->second;
}

std::vector<float> midpoints(std::span<const float> levels) {
  std::vector<float> between;
  for (std::size_t i = 0; i + 1 < levels.size(); ++i) between.push_back((levels[i] + levels[i + 1]) * 0.5F);
  return between;
}

std::uint8_t level_of(std::span<const float> midpoints, float x) {
  return static_cast<std::uint8_t>(std::upper_bound(midpoints.begin(), midpoints.end(), x) - midpoints.begin());
}

}  // namespace kvatlas

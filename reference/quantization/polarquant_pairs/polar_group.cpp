#include "reference/quantization/polarquant_pairs/polar_group.hpp"

#include <cmath>

#include "core/arith.hpp"
#include "core/arith64.hpp"
#include "core/formats/dtype.hpp"
#include "reference/primitives/angles.hpp"

namespace kvatlas::polar {

namespace {

std::int64_t second_of(Pairing pairing, std::int64_t pair, std::int64_t pairs) { return pairing.neighbours ? 2 * pair + 1 : pair + pairs; }
std::int64_t first_of(Pairing pairing, std::int64_t pair) { return pairing.neighbours ? 2 * pair : pair; }

Range range_of(const std::vector<float>& x, int bits, Dtype work) {
  float low = x[0], high = x[0];
  for (const float f : x) {
    low = num::min(low, f);
    high = num::max(high, f);
  }
  return {num::round_to(work, num::round_to(work, high - low) / static_cast<float>(1 << bits)), low};
}

std::uint8_t code_of(float x, Range r, int bits, Dtype work) {
  if (r.scale == 0.0F) return 0;
  const float steps = std::floor(num::round_to(work, num::round_to(work, x - r.low) / r.scale));
  return static_cast<std::uint8_t>(num::clamp(steps, 0.0F, static_cast<float>((1 << bits) - 1)));
}

float centre_of(std::uint8_t code, Range r) { return r.scale == 0.0F ? r.low : num::fma(r.scale, static_cast<float>(code) + 0.5F, r.low); }

}  // namespace

Group encode(View<const float> keys, int angle_bits, int radius_bits, Dtype work, Pairing pairing) {
  const std::int64_t tokens = keys.dim(0), pairs = keys.dim(1) / 2;
  const float turn = num::round_to(work, 6.2831853F);
  Group g{.angle_codes = std::vector<std::uint8_t>(static_cast<std::size_t>(tokens * pairs)),
          .radius_codes = std::vector<std::uint8_t>(static_cast<std::size_t>(tokens * pairs)), .angles = {}, .radii = {}};
  std::vector<float> angle(static_cast<std::size_t>(tokens)), radius(angle.size());
  for (std::int64_t j = 0; j < pairs; ++j) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      const float x = keys(t, first_of(pairing, j)), y = keys(t, second_of(pairing, j, pairs));
      float a = num::round_to(work, static_cast<float>(angle_of(static_cast<double>(x), static_cast<double>(y))));
      if (a < 0.0F) a = num::round_to(work, a + turn);
      angle[static_cast<std::size_t>(t)] = a;
      radius[static_cast<std::size_t>(t)] = num::round_to(work, std::sqrt(num::fma(x, x, y * y)));
    }
    g.angles.push_back(range_of(angle, angle_bits, work));
    g.radii.push_back(range_of(radius, radius_bits, work));
    for (std::int64_t t = 0; t < tokens; ++t) {
      g.angle_codes[static_cast<std::size_t>(t * pairs + j)] = code_of(angle[static_cast<std::size_t>(t)], g.angles.back(), angle_bits, work);
      g.radius_codes[static_cast<std::size_t>(t * pairs + j)] = code_of(radius[static_cast<std::size_t>(t)], g.radii.back(), radius_bits, work);
    }
  }
  return g;
}

void decode(const Group& g, View<float> keys, Pairing pairing) {
  const std::int64_t tokens = keys.dim(0), pairs = keys.dim(1) / 2;
  for (std::int64_t j = 0; j < pairs; ++j) {
    std::vector<float> cosine(256, 2.0F), sine(256);  // by angle code; 2: not made yet
    const auto pair = static_cast<std::size_t>(j);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const auto at = static_cast<std::size_t>(t * pairs + j);
      const std::uint8_t code = g.angle_codes[at];
      if (cosine[code] == 2.0F) {
        const float a = centre_of(code, g.angles[pair]);
        const bool defined = num::is_finite(a) && std::fabs(a) <= 1e6F;  // saved bytes may hold anything
        cosine[code] = defined ? static_cast<float>(num::cos(static_cast<double>(a))) : 0.0F;
        sine[code] = defined ? static_cast<float>(num::sin(static_cast<double>(a))) : 0.0F;
      }
      const float r = centre_of(g.radius_codes[at], g.radii[pair]);
      keys(t, first_of(pairing, j)) = r * cosine[code];
      keys(t, second_of(pairing, j, pairs)) = r * sine[code];
    }
  }
}

}  // namespace kvatlas::polar

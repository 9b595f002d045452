#include "models/runtime/pointwise.hpp"

#include <algorithm>
#include <array>

#include "core/arith.hpp"
#include "core/arith64.hpp"
#include "core/errors.hpp"

namespace kvatlas::models {

namespace {

/// num::exp2 without branches for -126 <= x <= 127.5, so that loops over it become vector code; same operations, same bits.
inline float exp2_inside(float x) {
  const float n = num::rint(x);
  const float f = x - n;
  float p = 0x1.41fbbcp-13F;
  p = num::fma(p, f, 0x1.5f3e54p-10F);
  p = num::fma(p, f, 0x1.3b2d4cp-7F);
  p = num::fma(p, f, 0x1.c6aee8p-5F);
  p = num::fma(p, f, 0x1.ebfbdcp-3F);
  p = num::fma(p, f, 0x1.62e430p-1F);
  p = num::fma(p, f, 1.0F);
  return num::float_of(num::bits_of(p) + (static_cast<std::uint32_t>(static_cast<std::int32_t>(n)) << 23));
}

constexpr float kLog2E = 0x1.715476p+0F, kLog2ETail = 0x1.4ae0c0p-26F, kLn2 = 0x1.62e430p-1F;
constexpr float kLowest = -87.0F;  // e^x stays normal

/// e^x for |x| <= 87, at most 1.5 ulp off: exp2 of the leading part of x log2(e), times 1 + its tail.
inline float exp_inside(float x) {
  const float high = x * kLog2E;
  const float tail = num::fma(x, kLog2ETail, num::fma(x, kLog2E, -high));
  const float e = exp2_inside(high);
  return num::fma(e, tail * kLn2, e);
}

/// z / (1 + e^-exponent). Beyond +-87 that is z or next to nothing whatever the exponential says.
inline float sigmoid_times(float z, float exponent) {
  const float e = exp_inside(-num::clamp(exponent, kLowest, -kLowest));
  return exponent < kLowest ? 0.0F : z / (1.0F + e);
}

}  // namespace

void rms_norm(std::span<const float> from, std::span<const float> weight, float eps, std::span<float> to) {
  KV_ASSERT(from.size() == weight.size() && to.size() == from.size(), "a weight for each value");
  const float mean = num::lane_dot(from, from) / static_cast<float>(from.size());
  const float r = num::rsqrt(mean + eps);
  for (std::size_t i = 0; i < from.size(); ++i) to[i] = from[i] * r * weight[i];
}

void gate(Activation activation, std::span<float> z, std::span<const float> up) {
  KV_ASSERT(z.size() == up.size(), "as many gates as values");
  const std::size_t n = z.size();
  float* g = z.data();
  const float* u = up.data();
  if (activation == Activation::silu) {
    for (std::size_t i = 0; i < n; ++i) g[i] = sigmoid_times(g[i], g[i]) * u[i];
  } else {
    constexpr float kTwiceRoot = 0x1.988454p+0F;  // 2 sqrt(2 / pi)
    for (std::size_t i = 0; i < n; ++i) {
      const float cube = num::fma(0.044715F * g[i] * g[i], g[i], g[i]);
      g[i] = sigmoid_times(g[i], kTwiceRoot * cube) * u[i];
    }
  }
}

double log_sum_exp(std::span<const float> x) {
  KV_ASSERT(!x.empty(), "a sum of at least one exponential");
  float lanes[8];
  std::fill(std::begin(lanes), std::end(lanes), x[0]);
  std::size_t i = 0;
  for (; i + 8 <= x.size(); i += 8)
    for (std::size_t l = 0; l < 8; ++l) lanes[l] = num::max(lanes[l], x[i + l]);
  float top = num::max_of(lanes, 8);
  for (; i < x.size(); ++i) top = num::max(top, x[i]);
  // Blocks of 4,096 in float32, blocks added in float64: vocabularies reach 2^18.
  std::array<float, 4096> e;
  double sum = 0;
  for (std::size_t first = 0; first < x.size(); first += e.size()) {
    const std::size_t count = std::min(e.size(), x.size() - first);
    for (std::size_t j = 0; j < count; ++j) e[j] = exp_inside(num::max(x[first + j] - top, kLowest));
    sum += static_cast<double>(num::lane_sum(e.data(), static_cast<std::int64_t>(count)));
  }
  return static_cast<double>(top) + num::log(sum);
}

}  // namespace kvatlas::models

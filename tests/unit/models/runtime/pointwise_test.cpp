#include "models/runtime/pointwise.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/catch.hpp"

using namespace kvatlas::models;

namespace {

/// Distance in units of the last place of a float of that size.
double ulps(float got, double want) {
  const double unit = std::ldexp(1.0, std::max(-149, std::ilogb(want == 0 ? 1e-45 : want) - 23));
  return std::abs(static_cast<double>(got) - want) / unit;
}

}  // namespace

TEST_CASE("gates are silu and the tanh form of gelu to a few units of the last place", "[unit]") {
  std::vector<float> z, up;
  for (int i = -6000; i <= 6000; ++i) z.push_back(static_cast<float>(i) * 0.0021F);
  for (const float extreme : {-3e38F, -500.0F, -88.0F, 88.0F, 500.0F, 3e38F, 0.0F}) z.push_back(extreme);
  up.assign(z.size(), 1.0F);
  std::vector<float> silu = z, gelu = z;
  gate(Activation::silu, silu, up);
  gate(Activation::gelu_tanh, gelu, up);
  for (std::size_t i = 0; i < z.size(); ++i) {
    const double x = static_cast<double>(z[i]);
    CAPTURE(x);
    if (std::abs(x) < 80) {
      CHECK(ulps(silu[i], x / (1 + std::exp(-x))) < 4);
      const double u = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
      // The exponent 2u is rounded to float: its relative error grows with |u|.
      CHECK(std::abs(static_cast<double>(gelu[i]) - x / (1 + std::exp(-2 * u))) < 1e-6 * (1e-6 + std::abs(x) / (1 + std::exp(-2 * u))) * (1 + std::abs(u)));
    } else {
      CHECK(silu[i] == Approx(x > 0 ? x : 0.0).margin(1e-30));
      CHECK(gelu[i] == Approx(x > 0 ? x : 0.0).margin(1e-30));
    }
  }
}

TEST_CASE("a norm divides by the root of the mean square", "[unit]") {
  const std::vector<float> x{3, -4, 0, 0}, w{1, 2, 3, 4};
  std::vector<float> y(4);
  rms_norm(x, w, 0.0F, y);
  CHECK(y == std::vector<float>{1.2F, -3.2F, 0, 0});
  const std::vector<float> zero(4, 0.0F);
  rms_norm(zero, w, 1e-6F, y);
  CHECK(y == zero);
}

TEST_CASE("the log of a sum of exponentials holds for short, long and lopsided rows", "[unit]") {
  for (const std::size_t n : {1U, 7U, 8U, 4096U, 4097U, 50000U}) {
    std::vector<float> x;
    long double sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
      x.push_back(static_cast<float>((i * 7919) % 1000) * 0.02F - 10.0F);
      sum += std::exp(static_cast<long double>(x.back()));
    }
    CAPTURE(n);
    CHECK(log_sum_exp(x) == Approx(static_cast<double>(std::log(sum))).epsilon(1e-6));
  }
  CHECK(log_sum_exp(std::vector<float>{500, -500, -1e30F}) == 500.0);
}

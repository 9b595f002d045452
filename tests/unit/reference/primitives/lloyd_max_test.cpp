#include "reference/primitives/lloyd_max.hpp"

#include <cmath>

#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("Lloyd levels at 128 channels are those that vLLM computes", "[unit]") {
  const std::vector<float> three = lloyd_levels(128, 3), four = lloyd_levels(128, 4);
  const std::vector<double> upper3{0.0216537, 0.0667903, 0.1187215, 0.1900658};
  const std::vector<double> upper4{0.0113515, 0.0343069, 0.0580605, 0.0833014, 0.1110385, 0.1430019, 0.1828266, 0.2413817};
  REQUIRE(three.size() == 8);
  REQUIRE(four.size() == 16);
  for (std::size_t i = 0; i < 4; ++i) CHECK(static_cast<double>(three[4 + i]) == Approx(upper3[i]).margin(6e-8));
  for (std::size_t i = 0; i < 8; ++i) CHECK(static_cast<double>(four[8 + i]) == Approx(upper4[i]).margin(6e-8));
}

TEST_CASE("Gaussian levels are symmetric and are the means of their cells", "[unit]") {
  for (int bits = 1; bits <= 4; ++bits) {
    const auto levels = gaussian_levels(bits);
    REQUIRE(levels.size() == std::size_t{1} << bits);
    for (std::size_t i = 0; i < levels.size(); ++i) {
      CHECK(levels[i] == -levels[levels.size() - 1 - i]);
      const double a = i == 0 ? -9.0 : (static_cast<double>(levels[i - 1]) + static_cast<double>(levels[i])) / 2;
      const double b = i + 1 == levels.size() ? 9.0 : (static_cast<double>(levels[i]) + static_cast<double>(levels[i + 1])) / 2;
      // The mean of a cell of the normal density is (density(a) - density(b)) / (mass of the cell).
      const auto density = [](double x) { return std::exp(-x * x / 2) / std::sqrt(2 * 3.14159265358979); };
      const double mass = (std::erf(b / std::sqrt(2.0)) - std::erf(a / std::sqrt(2.0))) / 2;
      CHECK(static_cast<double>(levels[i]) == Approx((density(a) - density(b)) / mass).margin(3e-6));
    }
  }
}

TEST_CASE("a value on a midpoint goes up", "[unit]") {
  const std::vector<float> levels{-3, -1, 1, 3}, between = midpoints(levels);
  CHECK(between == std::vector<float>{-2, 0, 2});
  CHECK(level_of(between, -2.0F) == 1);
  CHECK(level_of(between, -2.5F) == 0);
  CHECK(level_of(between, 0.0F) == 2);
  CHECK(level_of(between, 9.0F) == 3);
}

#include "reference/primitives/angles.hpp"

#include <cmath>

#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("angles agree with the C library to some 1e-16 all around the circle and at its axes", "[unit]") {
  CHECK(angle_of(0, 0) == 0.0);
  CHECK(angle_of(2, 0) == 0.0);
  CHECK(angle_of(-2, 0) == Approx(3.14159265358979323846).epsilon(1e-16));
  CHECK(angle_of(0, -3) == Approx(-1.57079632679489661923).epsilon(1e-16));
  for (int i = 0; i < 20000; ++i) {
    const double a = -3.14159 + 6.28318 * i / 20000.0, r = 1e-30 * std::pow(1.01, i % 5000);
    const double x = r * std::cos(a), y = r * std::sin(a);
    REQUIRE(std::fabs(angle_of(x, y) - std::atan2(y, x)) <= 1e-15);
  }
}

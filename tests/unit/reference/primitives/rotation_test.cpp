#include "reference/primitives/rotation.hpp"

#include <cmath>

#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("the Hadamard transform by hand, in blocks, and back", "[unit]") {
  std::vector<float> x{1, 2, 3, 4, 1, 0, 0, 0};
  hadamard(x, 4);
  CHECK(x == std::vector<float>{5, -1, -2, 0, 0.5F, 0.5F, 0.5F, 0.5F});
  hadamard(x, 4);
  CHECK(x == std::vector<float>{1, 2, 3, 4, 1, 0, 0, 0});
  CHECK(power_of_two_in(96) == 32);
  CHECK(power_of_two_in(128) == 128);
}

TEST_CASE("a random rotation is orthogonal, follows from its stream, and turns back", "[unit]") {
  const Array m = random_rotation(24, {.seed = 7});
  CHECK(m.values() == random_rotation(24, {.seed = 7}).values());
  CHECK(m.values() != random_rotation(24, {.seed = 8}).values());
  for (std::int64_t i = 0; i < 24; ++i)
    for (std::int64_t j = 0; j < 24; ++j) {
      double dot = 0;
      for (std::int64_t k = 0; k < 24; ++k) dot += static_cast<double>(m.view()(i, k)) * static_cast<double>(m.view()(j, k));
      REQUIRE(dot == Approx(i == j ? 1.0 : 0.0).margin(1e-6));
    }
  std::vector<float> x(24), y(24), back(24);
  for (std::size_t i = 0; i < 24; ++i) x[i] = static_cast<float>(i) - 11.0F;
  rotate(m.view(), x, y);
  rotate_back(m.view(), y, back);
  for (std::size_t i = 0; i < 24; ++i) CHECK(back[i] == Approx(x[i]).margin(1e-4));
}

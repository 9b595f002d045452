#include <cmath>

#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"
#include "tests/support/side_rows.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("polarquant: 62 bits for 16 channels", "[unit]") {
  CHECK(bits_per_value("polarquant", 128, 8) == 3.875);
  CHECK(bits_per_value("polarquant", 64, 8) == 3.875);
  CHECK(bits_per_value("polarquant", 16, 8) == 4.0);  // 46 bits end on a byte
}

TEST_CASE("polarquant: a zero vector keeps radius 0, the norm of every block is its stored radius", "[unit]") {
  const StoredSide zero = store_rows("polarquant", Side::key, 32, std::vector<float>(32, 0.0F));
  CHECK(zero.fp16("radii") == std::vector<float>{0, 0});
  CHECK(zero.decoded == std::vector<float>(32, 0.0F));
  CHECK(zero.bytes("codes") == std::vector<int>(12, 0));  // the angle of (0, 0) is 0 at every level
  Random random(3);
  std::vector<float> x;
  for (int i = 0; i < 32; ++i) x.push_back(random.normal());
  const StoredSide s = store_rows("polarquant", Side::value, 32, x);
  double norm = 0, stored = 0;
  for (const float f : s.decoded) norm += static_cast<double>(f) * static_cast<double>(f);
  for (const float f : s.fp16("radii")) stored += static_cast<double>(f) * static_cast<double>(f);
  CHECK(norm == Approx(stored).epsilon(1e-5));
}

TEST_CASE("polarquant: squared error is near what its angle errors add up to", "[unit]") {
  Random random(4);
  std::vector<float> x;
  for (int i = 0; i < 128 * 50; ++i) x.push_back(random.normal());
  const std::vector<float> y = store_rows("polarquant", Side::key, 128, x).decoded;
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    error += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
    norm += std::pow(static_cast<double>(x[i]), 2);
  }
  // Angles turn independently: mean squared errors (pi / 8)^2 / 12 of level 1, then 9.909e-3, 6.162e-3 and 3.393e-3.
  const double expected = std::pow(3.14159265 / 8, 2) / 12 + 9.909e-3 + 6.162e-3 + 3.393e-3;
  CHECK(error / norm == Approx(expected).epsilon(0.05));
}

TEST_CASE("polarquant: other seeds are other rotations; widths are whole blocks", "[unit]") {
  std::vector<float> x(16, 0.0F);
  x[2] = 1.0F;
  CHECK(store_rows("polarquant:seed=1", Side::key, 16, x).bytes("codes") != store_rows("polarquant:seed=2", Side::key, 16, x).bytes("codes"));
  CHECK(refusal("polarquant", 40) == "head_dim is 40, must be a multiple of 16, the channels under one radius");
}

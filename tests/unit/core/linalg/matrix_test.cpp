#include "core/linalg/matrix.hpp"

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "core/errors.hpp"
#include "tests/catch.hpp"
#include "tests/unit/core/linalg/cases.hpp"

namespace {

using namespace kvatlas;
using namespace kvatlas::linalg;
using namespace kvatlas::linalg::test;

TEST_CASE("a product is one fma chain over the inner index for every output", "[unit]") {
  for (const auto& [m, k, n] : std::vector<std::array<std::size_t, 3>>{
           {1, 1, 1}, {3, 0, 2}, {0, 3, 2}, {4, 5, 8}, {5, 33, 9}, {31, 32, 33}, {66, 100, 17}}) {
    const Matrix a = random_matrix(m, k, 1), b = random_matrix(k, n, 2);
    const Matrix c = matmul(a, b);
    REQUIRE((c.rows() == m && c.cols() == n));
    for (std::size_t i = 0; i < m; ++i)
      for (std::size_t j = 0; j < n; ++j) {
        double sum = 0.0;
        for (std::size_t t = 0; t < k; ++t) sum = std::fma(a(i, t), b(t, j), sum);
        REQUIRE(c(i, j) == sum);
      }
  }
  REQUIRE_THROWS_WITH(matmul(Matrix(2, 3), Matrix(2, 3)), "b has 2 rows, must have as many as a has columns (3)");
}

TEST_CASE("a Gram matrix is symmetric to the bit", "[unit]") {
  const Matrix a = random_matrix(40, 19, 3);
  const Matrix gram = matmul(transpose(a), a);
  REQUIRE(gram == transpose(gram));
}

TEST_CASE("a lane dot runs in sixteen lanes that are added 8, 4, 2, 1 apart", "[unit]") {
  for (const std::size_t n : {0U, 1U, 15U, 16U, 17U, 31U, 32U, 33U, 1000U}) {
    const Matrix a = random_matrix(2, n, 4);
    double lane[16] = {};
    for (std::size_t i = 0; i < n; ++i) lane[i % 16] = std::fma(a(0, i), a(1, i), lane[i % 16]);
    for (std::size_t apart = 8; apart > 0; apart /= 2)
      for (std::size_t l = 0; l < apart; ++l) lane[l] = lane[l] + lane[l + apart];
    REQUIRE(lane_dot(a.row(0), a.row(1)) == lane[0]);
  }
}

TEST_CASE("a rotation rounds one product and fuses the other", "[unit]") {
  std::vector<double> x = {1.0 / 3.0, 0.1, -7.0}, y = {0.7, 1e-9, 1.0 / 7.0};
  const std::vector<double> x0 = x, y0 = y;
  rotate(x, y, 0.8, 0.6);
  for (std::size_t i = 0; i < 3; ++i) {
    const volatile double sy = 0.6 * y0[i], cy = 0.8 * y0[i];
    REQUIRE(x[i] == std::fma(0.8, x0[i], -sy));
    REQUIRE(y[i] == std::fma(0.6, x0[i], cy));
  }
}

TEST_CASE("transposing twice, and float32 there and back, change nothing", "[unit]") {
  const Matrix a = random_matrix(33, 18, 5);
  const Matrix t = transpose(a);
  REQUIRE((t.rows() == 18 && t.cols() == 33 && t(17, 32) == a(32, 17)));
  REQUIRE(transpose(t) == a);
  const Array floats = to_array(a);
  REQUIRE(to_array(from_view(floats.view())).values() == floats.values());
  REQUIRE(from_view(floats.view())(3, 4) == static_cast<double>(static_cast<float>(a(3, 4))));
  REQUIRE(first_columns(a, 2)(32, 1) == a(32, 1));
}

TEST_CASE("signs are fixed by the largest entry, the lowest row on ties", "[unit]") {
  Matrix a(3, 4, {-2, 1, 0, 1,  //
                  2, -3, 0, 2,  //
                  1, 1, 0, -2});
  REQUIRE(make_largest_positive(a) == std::vector<bool>{true, true, false, false});
  REQUIRE(a == Matrix(3, 4, {2, -1, 0, 1,  //
                             -2, 3, 0, 2,  //
                             -1, -1, 0, -2}));
}

TEST_CASE("what is no finite matrix is refused", "[unit]") {
  REQUIRE_THROWS_WITH(Matrix(2, 2, {1.0}), "values has 1 entries, must have rows * cols (4)");
  Array floats({2, 2});
  floats.values()[2] = std::numeric_limits<float>::quiet_NaN();
  REQUIRE_THROWS_WITH(from_view(floats.view()), "view entry (1, 0) is nan, must be finite and at most 2^500");
  floats.values()[2] = std::numeric_limits<float>::infinity();
  REQUIRE_THROWS_WITH(from_view(floats.view()), "view entry (1, 0) is inf, must be finite and at most 2^500");
  REQUIRE_THROWS_WITH(from_view(Array({2}).view()), "view has rank 1, must be 2");
}

}  // namespace

#include "core/linalg/cholesky.hpp"

#include <cmath>

#include "core/errors.hpp"
#include "tests/catch.hpp"
#include "tests/unit/core/linalg/cases.hpp"

namespace {

using namespace kvatlas;
using namespace kvatlas::linalg;
using namespace kvatlas::linalg::test;

Matrix definite(std::size_t n, std::uint64_t seed) {
  const Matrix a = random_matrix(2 * n, n, seed);
  return matmul(transpose(a), a);
}

TEST_CASE("the Cholesky factor of 4 2 2 10 is 2 1 3", "[unit]") {
  const std::optional<Matrix> lower = cholesky(Matrix(2, 2, {4, 2, 2, 10}));
  REQUIRE(lower.has_value());
  REQUIRE(*lower == Matrix(2, 2, {2, 0, 1, 3}));
  REQUIRE(invert_lower(*lower) == Matrix(2, 2, {0.5, 0, -1.0 / 6.0, 1.0 / 3.0}));
  REQUIRE(cholesky_solve(*lower, Matrix(2, 1, {8, 22})) == Matrix(2, 1, {1, 2}));
}

TEST_CASE("the Cholesky factor multiplies back and agrees with Eigen", "[unit]") {
  for (const std::size_t n : {1U, 2U, 31U, 64U, 100U}) {
    const Matrix a = definite(n, n);
    const std::optional<Matrix> lower = cholesky(a);
    REQUIRE(lower.has_value());
    const double bound = static_cast<double>(n) * kEps * norm(a);  // backward error of Cholesky: (n + 1) eps |L| |L^T|
    REQUIRE(distance(matmul(*lower, transpose(*lower)), a) <= bound);
    const Eigen::MatrixXd yardstick = to_eigen(a).llt().matrixL();
    REQUIRE((to_eigen(*lower) - yardstick).norm() <= 40.0 * bound);  // condition about 34
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = i + 1; j < n; ++j) REQUIRE((*lower)(i, j) == 0.0);
  }
}

TEST_CASE("every entry of the factor is the left-looking fma chain", "[unit]") {
  const Matrix a = definite(13, 9);
  const Matrix lower = cholesky(a).value();
  for (std::size_t i = 0; i < 13; ++i)
    for (std::size_t j = 0; j <= i; ++j) {
      double sum = a(i, j);
      for (std::size_t k = 0; k < j; ++k) sum = std::fma(-lower(i, k), lower(j, k), sum);
      REQUIRE(lower(i, j) == (i == j ? std::sqrt(sum) : sum / lower(j, j)));
    }
}

TEST_CASE("systems are solved and factors inverted", "[unit]") {
  const Matrix a = definite(40, 5), b = random_matrix(40, 3, 6);
  const Matrix lower = cholesky(a).value();
  const Matrix x = cholesky_solve(lower, b);
  REQUIRE(distance(matmul(a, x), b) <= 40.0 * 40.0 * kEps * norm(a) * norm(x));
  const Matrix inverse = invert_lower(lower);
  REQUIRE(distance(matmul(inverse, lower), Matrix::identity(40)) <= 40.0 * kEps * norm(lower) * norm(inverse));
  REQUIRE(inverse(0, 39) == 0.0);
}

TEST_CASE("only the lower triangle is read", "[unit]") {
  Matrix a = definite(6, 7);
  const Matrix lower = cholesky(a).value();
  for (std::size_t i = 0; i < 6; ++i)
    for (std::size_t j = i + 1; j < 6; ++j) a(i, j) = 1e6;
  REQUIRE(cholesky(a).value() == lower);
}

TEST_CASE("a matrix that is not positive definite has no factor", "[unit]") {
  REQUIRE_FALSE(cholesky(Matrix(1, 1, {0.0})).has_value());
  REQUIRE_FALSE(cholesky(Matrix(3, 3)).has_value());
  REQUIRE_FALSE(cholesky(Matrix(2, 2, {1, 2, 2, 1})).has_value());
  REQUIRE(cholesky(Matrix(0, 0)).has_value());
}

TEST_CASE("Cholesky refuses NaN and matrices that are not square", "[unit]") {
  REQUIRE_THROWS_WITH(cholesky(with_nan(2, 2)), "matrix entry (0, 1) is nan, must be finite and at most 2^500");
  REQUIRE_THROWS_WITH(cholesky(Matrix(2, 3)), "matrix is 2 x 3, must be square");
  REQUIRE_THROWS_WITH(cholesky_solve(Matrix(2, 2), Matrix(3, 1)), "lower is 2 x 2, must be square with the 3 rows of b");
}

}  // namespace

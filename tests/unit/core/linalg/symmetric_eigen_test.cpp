#include "core/linalg/symmetric_eigen.hpp"

#include <cmath>

#include "core/errors.hpp"
#include "core/linalg/svd.hpp"
#include "tests/catch.hpp"
#include "tests/unit/core/linalg/cases.hpp"

namespace {

using namespace kvatlas;
using namespace kvatlas::linalg;
using namespace kvatlas::linalg::test;

Matrix symmetric(std::size_t n, std::uint64_t seed) {
  Matrix a = random_matrix(n, n, seed);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < i; ++j) a(j, i) = a(i, j);
  return a;
}

void check(const Matrix& a, const SymmetricEigen& e) {
  const std::size_t n = a.rows();
  const double bound = 8.0 * static_cast<double>(n) * kEps;
  Matrix scaled = e.vectors;
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) scaled(i, j) *= e.values[j];
  REQUIRE(distance(matmul(scaled, transpose(e.vectors)), a) <= bound * norm(a));
  REQUIRE(skewness(e.vectors) <= bound);
  REQUIRE(largest_entries_positive(e.vectors));
  for (std::size_t j = 1; j < n; ++j) REQUIRE(e.values[j] <= e.values[j - 1]);
}

TEST_CASE("2 1 1 2 has eigenvalues 3 and 1", "[unit]") {
  const SymmetricEigen e = symmetric_eigen(Matrix(2, 2, {2, 1, 1, 2}));
  REQUIRE(std::abs(e.values[0] - 3.0) <= 4 * kEps);
  REQUIRE(std::abs(e.values[1] - 1.0) <= 4 * kEps);
  REQUIRE(std::abs(e.vectors(0, 0) - std::sqrt(0.5)) <= 4 * kEps);
  REQUIRE(std::abs(e.vectors(1, 0) - std::sqrt(0.5)) <= 4 * kEps);
}

TEST_CASE("indefinite matrices come apart and agree with Eigen", "[unit]") {
  for (const std::size_t n : {1U, 2U, 3U, 31U, 64U, 100U}) {
    const Matrix a = symmetric(n, n);
    const SymmetricEigen e = symmetric_eigen(a);
    check(a, e);
    const Eigen::VectorXd yardstick = Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(to_eigen(a)).eigenvalues();
    for (std::size_t j = 0; j < n; ++j)
      REQUIRE(std::abs(e.values[j] - yardstick(static_cast<Eigen::Index>(n - 1 - j))) <=
              8.0 * static_cast<double>(n) * kEps * norm(a));
  }
}

TEST_CASE("the eigenvectors of a Gram matrix are the right factors of the SVD, signs included", "[unit]") {
  const Matrix a = graded_matrix(40, 12, 0.6, 3);
  const SymmetricEigen e = symmetric_eigen(matmul(transpose(a), a));
  const Svd svd = jacobi_svd(a);
  for (std::size_t j = 0; j < 4; ++j) {
    REQUIRE(std::abs(std::sqrt(e.values[j]) / svd.sigma[j] - 1.0) < 1e-12);
    for (std::size_t i = 0; i < 12; ++i) REQUIRE(std::abs(e.vectors(i, j) - svd.v(i, j)) < 1e-10);
  }
}

TEST_CASE("rank-deficient, zero, diagonal and identity matrices come apart", "[unit]") {
  const Matrix thin = random_matrix(3, 20, 4);
  const Matrix gram = matmul(transpose(thin), thin);
  check(gram, symmetric_eigen(gram));
  REQUIRE(symmetric_eigen(Matrix::identity(5)).vectors == Matrix::identity(5));
  REQUIRE(symmetric_eigen(Matrix(4, 4)).vectors == Matrix::identity(4));
  const SymmetricEigen e = symmetric_eigen(Matrix(3, 3, {1, 0, 0, 0, -2, 0, 0, 0, 7}));
  REQUIRE(e.values == std::vector<double>{7, 1, -2});
  REQUIRE(e.vectors == Matrix(3, 3, {0, 1, 0, 0, 0, 1, 1, 0, 0}));
  REQUIRE(symmetric_eigen(Matrix(0, 0)).values.empty());
}

TEST_CASE("only the lower triangle is read by the eigen-decomposition", "[unit]") {
  Matrix a = symmetric(9, 5);
  const SymmetricEigen e = symmetric_eigen(a);
  a(0, 8) = 1e9;
  REQUIRE(symmetric_eigen(a).vectors == e.vectors);
}

TEST_CASE("the eigen-decomposition refuses NaN and matrices that are not square", "[unit]") {
  REQUIRE_THROWS_WITH(symmetric_eigen(with_nan(2, 2)), "matrix entry (0, 1) is nan, must be finite and at most 2^500");
  REQUIRE_THROWS_WITH(symmetric_eigen(Matrix(2, 3)), "matrix is 2 x 3, must be square");
}

}  // namespace

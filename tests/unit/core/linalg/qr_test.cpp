#include "core/linalg/qr.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/errors.hpp"
#include "tests/catch.hpp"
#include "tests/unit/core/linalg/cases.hpp"

namespace {

using namespace kvatlas;
using namespace kvatlas::linalg;
using namespace kvatlas::linalg::test;

void check(const Matrix& a, const Qr& qr) {
  const double bound = static_cast<double>(a.rows() + a.cols()) * kEps;
  REQUIRE(distance(matmul(qr.q, qr.r), a) <= bound * norm(a));
  REQUIRE(skewness(qr.q) <= bound);
  for (std::size_t i = 0; i < qr.r.rows(); ++i) {
    REQUIRE(qr.r(i, i) >= 0.0);
    for (std::size_t j = 0; j < i; ++j) REQUIRE(qr.r(i, j) == 0.0);
  }
}

TEST_CASE("QR of a 3 4 column is its direction and its length", "[unit]") {
  const Qr qr = householder_qr(Matrix(2, 1, {3, 4}));
  REQUIRE(qr.r == Matrix(1, 1, {5.0}));
  REQUIRE(std::abs(qr.q(0, 0) - 0.6) <= kEps);
  REQUIRE(std::abs(qr.q(1, 0) - 0.8) <= kEps);
}

TEST_CASE("thin QR multiplies back, is orthonormal and agrees with Eigen", "[unit]") {
  for (const auto& [m, n] : std::vector<std::pair<std::size_t, std::size_t>>{{1, 1}, {5, 5}, {33, 7}, {100, 64}, {300, 31}}) {
    const Matrix a = random_matrix(m, n, m);
    const Qr qr = householder_qr(a);
    check(a, qr);
    const Eigen::MatrixXd yardstick = Eigen::HouseholderQR<Eigen::MatrixXd>(to_eigen(a)).matrixQR();
    for (std::size_t i = 0; i < n; ++i)
      REQUIRE(std::abs(std::abs(yardstick(static_cast<Eigen::Index>(i), static_cast<Eigen::Index>(i))) - qr.r(i, i)) <=
              static_cast<double>(m * n) * kEps * norm(a));
  }
}

TEST_CASE("Q is orthonormal for zero, repeated and dependent columns", "[unit]") {
  check(Matrix(4, 3), householder_qr(Matrix(4, 3)));
  check(Matrix(1, 1), householder_qr(Matrix(1, 1)));
  Matrix repeated = random_matrix(20, 6, 3);
  for (std::size_t i = 0; i < 20; ++i) repeated(i, 1) = 0.0, repeated(i, 4) = repeated(i, 0), repeated(i, 5) = -2 * repeated(i, 2);
  check(repeated, householder_qr(repeated));
  check(Matrix::identity(5), householder_qr(Matrix::identity(5)));
  REQUIRE(householder_qr(Matrix::identity(5)).r == Matrix::identity(5));
  REQUIRE(householder_qr(Matrix::identity(5)).q == Matrix::identity(5));
}

TEST_CASE("with pivoting the diagonal of R does not increase and the order is a permutation", "[unit]") {
  Matrix a = random_matrix(50, 20, 8);
  for (std::size_t i = 0; i < 50; ++i) a(i, 7) *= 100.0, a(i, 3) = a(i, 2);
  const Reflections qr(a, true);
  REQUIRE(qr.order()[0] == 7);
  std::vector<std::size_t> sorted = qr.order();
  std::sort(sorted.begin(), sorted.end());
  for (std::size_t j = 0; j < 20; ++j) REQUIRE(sorted[j] == j);
  for (std::size_t j = 1; j < 20; ++j) REQUIRE(qr.r()(j, j) <= qr.r()(j - 1, j - 1) * (1.0 + 100 * kEps));
  Matrix permuted(50, 20);
  for (std::size_t i = 0; i < 50; ++i)
    for (std::size_t j = 0; j < 20; ++j) permuted(i, j) = a(i, qr.order()[j]);
  check(permuted, {qr.q_times(Matrix::identity(20)), qr.r()});
}

TEST_CASE("equal columns are taken in their order", "[unit]") {
  REQUIRE(Reflections(Matrix::identity(4), true).order() == std::vector<std::size_t>{0, 1, 2, 3});
}

TEST_CASE("QR refuses NaN and wide matrices", "[unit]") {
  REQUIRE_THROWS_WITH(householder_qr(with_nan(3, 2)), "matrix entry (0, 1) is nan, must be finite and at most 2^500");
  REQUIRE_THROWS_WITH(householder_qr(Matrix(2, 3)), "matrix is 2 x 3, must have at least as many rows as columns");
  REQUIRE_THROWS_WITH(Reflections(Matrix(3, 2)).q_times(Matrix(3, 1)), "x has 3 rows, must have 2");
}

}  // namespace

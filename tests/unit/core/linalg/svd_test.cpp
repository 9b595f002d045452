#include "core/linalg/svd.hpp"

#include <cmath>
#include <utility>
#include <vector>

#include "core/errors.hpp"
#include "core/linalg/qr.hpp"
#include "tests/catch.hpp"
#include "tests/unit/core/linalg/cases.hpp"

namespace {

using namespace kvatlas;
using namespace kvatlas::linalg;
using namespace kvatlas::linalg::test;

/// What every SVD owes: shape, product, orthonormal factors, order, signs. Backward error: a modest multiple of eps for
/// each of the r steps of QR and the sweeps.
void check(const Matrix& a, const Svd& svd) {
  const std::size_t r = std::min(a.rows(), a.cols());
  const double bound = 8.0 * static_cast<double>(a.rows() + a.cols()) * kEps;
  REQUIRE(svd.sigma.size() == r);
  REQUIRE((svd.u.rows() == a.rows() && svd.u.cols() == r && svd.v.rows() == a.cols() && svd.v.cols() == r));
  REQUIRE(distance(compose(svd), a) <= bound * norm(a));
  REQUIRE(skewness(svd.u) <= bound);
  REQUIRE(skewness(svd.v) <= bound);
  REQUIRE(largest_entries_positive(svd.v));
  for (std::size_t j = 0; j < r; ++j) {
    REQUIRE(svd.sigma[j] >= 0.0);
    if (j > 0) REQUIRE(svd.sigma[j] <= svd.sigma[j - 1]);
  }
}

void check_against_eigen(const Matrix& a, const Svd& svd) {
  const Eigen::VectorXd yardstick = Eigen::JacobiSVD<Eigen::MatrixXd>(to_eigen(a)).singularValues();
  const double bound = 8.0 * static_cast<double>(a.rows() + a.cols()) * kEps * norm(a);
  for (std::size_t j = 0; j < svd.sigma.size(); ++j)
    REQUIRE(std::abs(svd.sigma[j] - yardstick(static_cast<Eigen::Index>(j))) <= bound);
}

TEST_CASE("the SVD of 3 0 4 5 has singular values sqrt 45 and sqrt 5", "[unit]") {
  const Svd svd = jacobi_svd(Matrix(2, 2, {3, 0, 4, 5}));
  REQUIRE(std::abs(svd.sigma[0] - std::sqrt(45.0)) <= 4 * kEps * 7);
  REQUIRE(std::abs(svd.sigma[1] - std::sqrt(5.0)) <= 4 * kEps * 7);
  check(Matrix(2, 2, {3, 0, 4, 5}), svd);
}

TEST_CASE("tall, square and wide matrices come apart and multiply back", "[unit]") {
  for (const auto& [m, n] : std::vector<std::pair<std::size_t, std::size_t>>{
           {1, 1}, {1, 7}, {7, 1}, {31, 32}, {33, 32}, {64, 64}, {120, 40}, {40, 120}}) {
    const Matrix a = random_matrix(m, n, m * 1000 + n);
    const Svd svd = jacobi_svd(a);
    check(a, svd);
    check_against_eigen(a, svd);
  }
}

TEST_CASE("singular values over twelve decades come apart", "[unit]") {
  const Matrix a = graded_matrix(90, 40, 0.5, 17);
  const Svd svd = jacobi_svd(a);
  check(a, svd);
  check_against_eigen(a, svd);
}

TEST_CASE("a rank-deficient matrix has small singular values and full orthonormal factors", "[unit]") {
  const Matrix a = matmul(random_matrix(50, 5, 1), random_matrix(5, 20, 2));
  const Svd svd = jacobi_svd(a);
  check(a, svd);
  for (std::size_t j = 5; j < 20; ++j) REQUIRE(svd.sigma[j] <= 200 * kEps * svd.sigma[0]);
  check(transpose(a), jacobi_svd(transpose(a)));
}

TEST_CASE("zero columns and zero matrices get completed factors", "[unit]") {
  for (const auto& [m, n] : std::vector<std::pair<std::size_t, std::size_t>>{{1, 1}, {5, 3}, {3, 5}, {4, 4}}) {
    const Svd svd = jacobi_svd(Matrix(m, n));
    check(Matrix(m, n), svd);
    REQUIRE(largest_entries_positive(svd.u));
    for (const double s : svd.sigma) REQUIRE(s == 0.0);
  }
  Matrix a = random_matrix(12, 6, 4);
  for (std::size_t i = 0; i < 12; ++i) a(i, 2) = 0.0, a(i, 4) = 0.0;
  const Svd svd = jacobi_svd(a);
  check(a, svd);
  REQUIRE((svd.sigma[4] == 0.0 && svd.sigma[5] == 0.0 && svd.sigma[3] > 0.1));
}

TEST_CASE("the right factors of an exact rank-one matrix are completed to a basis", "[unit]") {
  const Matrix a(4, 3, {2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0});
  const Svd svd = jacobi_svd(a);
  REQUIRE((svd.sigma[1] == 0.0 && svd.sigma[2] == 0.0));
  check(a, svd);
  check(transpose(a), jacobi_svd(transpose(a)));
}

TEST_CASE("equal singular values keep the order of the columns", "[unit]") {
  const Svd svd = jacobi_svd(Matrix::identity(6));
  REQUIRE(svd.sigma == std::vector<double>(6, 1.0));
  REQUIRE(svd.u == Matrix::identity(6));
  REQUIRE(svd.v == Matrix::identity(6));
}

TEST_CASE("an empty matrix has no singular values", "[unit]") {
  REQUIRE(jacobi_svd(Matrix(0, 4)).sigma.empty());
  REQUIRE(jacobi_svd(Matrix(4, 0)).sigma.empty());
}

TEST_CASE("float32 subnormals and the largest floats come apart", "[unit]") {
  for (const double scale : {0x1p-149, 0x1p127}) {
    Matrix a = random_matrix(20, 8, 6);
    for (std::size_t i = 0; i < 20; ++i)
      for (double& x : a.row(i)) x *= scale;
    check(a, jacobi_svd(a));
  }
}

TEST_CASE("the truncated SVD finds the leading part of a decaying matrix", "[unit]") {
  for (const auto& [m, n] : std::vector<std::pair<std::size_t, std::size_t>>{{200, 60}, {60, 200}}) {
    const Matrix a = m > n ? graded_matrix(m, n, 0.8, 21) : transpose(graded_matrix(n, m, 0.8, 21));
    const Svd full = jacobi_svd(a);
    const Svd part = truncated_svd(a, {.rank = 10});
    REQUIRE((part.sigma.size() == 10 && part.u.cols() == 10 && part.v.cols() == 10));
    REQUIRE(skewness(part.u) <= 1000 * kEps);
    REQUIRE(skewness(part.v) <= 1000 * kEps);
    REQUIRE(largest_entries_positive(part.v));
    // The block is 18 wide: what it misses shrinks by (sigma_19 / sigma_10)^16, about 0.13^16, before the last product.
    for (std::size_t j = 0; j < 10; ++j) REQUIRE(std::abs(part.sigma[j] / full.sigma[j] - 1.0) < 1e-11);
    for (std::size_t j = 0; j < 10; ++j) {
      double along = 0.0;
      for (std::size_t i = 0; i < n; ++i) along += part.v(i, j) * full.v(i, j);
      REQUIRE(std::abs(along - 1.0) < 1e-9);  // the same sign, too
    }
  }
}

TEST_CASE("the truncated SVD makes exactly the stated passes", "[unit]") {
  const Matrix a = random_matrix(70, 50, 12);
  const RandomStream stream{.seed = 5};
  Matrix basis(50, 6);
  for (std::size_t i = 0; i < 50; ++i)
    for (std::size_t j = 0; j < 6; ++j) basis(i, j) = random_normal(stream, i * 6 + j);
  basis = householder_qr(basis).q;
  for (int iterations = 0; iterations < 4; ++iterations) {
    const Svd part = truncated_svd(a, {.rank = 4, .oversample = 2, .iterations = iterations, .start = stream});
    const Svd small = jacobi_svd(matmul(a, basis));
    REQUIRE(part.sigma == std::vector<double>(small.sigma.begin(), small.sigma.begin() + 4));
    basis = householder_qr(matmul(transpose(a), householder_qr(matmul(a, basis)).q)).q;
  }
}

TEST_CASE("the truncated SVD of a low-rank matrix is the matrix", "[unit]") {
  const Matrix a = matmul(random_matrix(300, 6, 1), random_matrix(6, 100, 2));
  REQUIRE(distance(compose(truncated_svd(a, {.rank = 6})), a) <= 1000 * kEps * norm(a));
  REQUIRE(compose(truncated_svd(Matrix(30, 40), {.rank = 2})) == Matrix(30, 40));
}

TEST_CASE("a block that covers the smaller side gives the full SVD cut", "[unit]") {
  const Matrix a = random_matrix(30, 12, 5);
  const Svd full = jacobi_svd(a), part = truncated_svd(a, {.rank = 4});
  for (std::size_t j = 0; j < 4; ++j) REQUIRE(part.sigma[j] == full.sigma[j]);
  REQUIRE(part.v == first_columns(full.v, 4));
}

TEST_CASE("another start gives other bits and the same subspace", "[unit]") {
  const Matrix a = graded_matrix(80, 40, 0.7, 31);
  const Svd first = truncated_svd(a, {.rank = 5, .start = {.seed = 1}});
  const Svd again = truncated_svd(a, {.rank = 5, .start = {.seed = 1}});
  const Svd second = truncated_svd(a, {.rank = 5, .start = {.seed = 2}});
  REQUIRE(first.u == again.u);
  REQUIRE(first.v == again.v);
  REQUIRE_FALSE(first.v == second.v);
  REQUIRE(distance(first.v, second.v) < 1e-9);
}

TEST_CASE("SVDs refuse NaN and impossible ranks", "[unit]") {
  REQUIRE_THROWS_WITH(jacobi_svd(with_nan(2, 3)), "matrix entry (2, 0) is nan, must be finite and at most 2^500");
  REQUIRE_THROWS_AS(truncated_svd(with_nan(40, 30), {.rank = 2}), InvalidArgument);
  REQUIRE_THROWS_WITH(truncated_svd(Matrix(4, 3), {.rank = 4}), "rank is 4, must be between 1 and min(rows, cols) (3)");
  REQUIRE_THROWS_WITH(truncated_svd(Matrix(4, 3), {.rank = 0}), "rank is 0, must be between 1 and min(rows, cols) (3)");
  REQUIRE_THROWS_WITH(truncated_svd(Matrix(4, 3), {.rank = 1, .iterations = -1}), "iterations is -1, must not be negative");
}

}  // namespace

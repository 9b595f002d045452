// Matrices that the tests of the decompositions share, the way to Eigen (their yardstick), and orthogonality.
#pragma once

#include <Eigen/Dense>

#include <cmath>
#include <cstddef>
#include <limits>

#include "core/linalg/matrix.hpp"
#include "core/philox.hpp"

namespace kvatlas::linalg::test {

inline constexpr double kEps = 0x1p-52;

inline Matrix random_matrix(std::size_t rows, std::size_t cols, std::uint64_t seed) {
  Matrix a(rows, cols);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < cols; ++j) a(i, j) = random_normal({.seed = seed}, i * cols + j);
  return a;
}

/// Random with singular values that fall by powers of `decay`, roughly.
inline Matrix graded_matrix(std::size_t rows, std::size_t cols, double decay, std::uint64_t seed) {
  Matrix a = random_matrix(rows, cols, seed);
  double scale = 1.0;
  for (std::size_t j = 0; j < cols; ++j, scale *= decay)
    for (std::size_t i = 0; i < rows; ++i) a(i, j) *= scale;
  return matmul(a, random_matrix(cols, cols, seed + 1));
}

inline Eigen::MatrixXd to_eigen(const Matrix& a) {
  Eigen::MatrixXd out(a.rows(), a.cols());
  for (std::size_t i = 0; i < a.rows(); ++i)
    for (std::size_t j = 0; j < a.cols(); ++j) out(static_cast<Eigen::Index>(i), static_cast<Eigen::Index>(j)) = a(i, j);
  return out;
}

inline double norm(const Matrix& a) { return to_eigen(a).norm(); }

inline double distance(const Matrix& a, const Matrix& b) { return (to_eigen(a) - to_eigen(b)).norm(); }

/// |A^T A - 1|, Frobenius.
inline double skewness(const Matrix& a) {
  const Eigen::MatrixXd m = to_eigen(a);
  return (m.transpose() * m - Eigen::MatrixXd::Identity(m.cols(), m.cols())).norm();
}

inline bool largest_entries_positive(const Matrix& a) {
  for (std::size_t j = 0; j < a.cols(); ++j) {
    double largest = 0.0;
    for (std::size_t i = 0; i < a.rows(); ++i)
      if (std::abs(a(i, j)) > std::abs(largest)) largest = a(i, j);
    if (!(largest > 0.0)) return false;
  }
  return true;
}

inline Matrix with_nan(std::size_t rows, std::size_t cols) {
  Matrix a(rows, cols);
  a(0, cols - 1) = std::numeric_limits<double>::quiet_NaN();
  return a;
}

}  // namespace kvatlas::linalg::test

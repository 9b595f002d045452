#include "core/linalg/qr.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/errors.hpp"

namespace kvatlas::linalg {

namespace {

constexpr double kZeroSquares = 0x1p-1000;  // below it the reciprocal of a sum of squares overflows

/// Sum of squares of each column over rows first .. end, ascending.
std::vector<double> squared_norms(const Matrix& a, std::size_t first) {
  std::vector<double> sum(a.cols(), 0.0);
  for (std::size_t i = first; i < a.rows(); ++i) {
    const std::span<const double> row = a.row(i);
    for (std::size_t j = 0; j < row.size(); ++j) sum[j] = fma(row[j], row[j], sum[j]);
  }
  return sum;
}

void swap_columns(Matrix& a, std::size_t x, std::size_t y) {
  for (std::size_t i = 0; i < a.rows(); ++i) std::swap(a(i, x), a(i, y));
}

}  // namespace

void Reflections::reflect(std::size_t k, Matrix& target, std::size_t first_col) const {
  if (scales_[k] == 0.0) return;
  const std::span<const double> v = vectors_.row(k);
  const std::size_t width = target.cols() - first_col;
  std::vector<double> product(width, 0.0);  // v^T target
  for (std::size_t i = k; i < target.rows(); ++i) {
    const double* row = target.row(i).data() + first_col;
    for (std::size_t j = 0; j < width; ++j) product[j] = fma(v[i], row[j], product[j]);
  }
  for (std::size_t i = k; i < target.rows(); ++i) {
    double* row = target.row(i).data() + first_col;
    const double factor = -(scales_[k] * v[i]);
    for (std::size_t j = 0; j < width; ++j) row[j] = fma(factor, product[j], row[j]);
  }
}

Reflections::Reflections(const Matrix& a, bool pivot)
    : vectors_(a.cols(), a.rows()), scales_(a.cols(), 0.0), negative_(a.cols(), false), r_(a.cols(), a.cols()),
      order_(a.cols()) {
  if (a.rows() < a.cols())
    throw InvalidArgument(cat("matrix is ", a.rows(), " x ", a.cols(), ", must have at least as many rows as columns"));
  require_finite(a, "matrix");
  std::iota(order_.begin(), order_.end(), std::size_t{0});
  Matrix work = a;
  for (std::size_t k = 0; k < a.cols(); ++k) {
    if (pivot) {
      const std::vector<double> norms = squared_norms(work, k);
      const auto begin = norms.begin() + static_cast<std::ptrdiff_t>(k);
      const auto best = k + static_cast<std::size_t>(std::max_element(begin, norms.end()) - begin);
      if (best != k) {
        swap_columns(work, k, best);
        std::swap(order_[k], order_[best]);
      }
    }
    double squares = 0.0;
    for (std::size_t i = k; i < a.rows(); ++i) {
      vectors_(k, i) = work(i, k);
      squares = fma(work(i, k), work(i, k), squares);
    }
    const double norm = squares < kZeroSquares ? 0.0 : std::sqrt(squares);
    const double head = work(k, k);
    if (norm > 0.0) {
      // v = x + sign(x_0) |x| e_0 adds numbers of one sign; v.v / 2 = |x| (|x| + |x_0|).
      vectors_(k, k) = head >= 0.0 ? head + norm : head - norm;
      scales_[k] = 1.0 / (norm * (norm + std::abs(head)));
      negative_[k] = head >= 0.0;  // the reflected head is -sign(x_0) |x|
      if (k + 1 < a.cols()) reflect(k, work, k + 1);
    }
    r_(k, k) = norm;
  }
  for (std::size_t k = 0; k < a.cols(); ++k)
    for (std::size_t j = k + 1; j < a.cols(); ++j) r_(k, j) = negative_[k] ? -work(k, j) : work(k, j);
}

Matrix Reflections::q_times(const Matrix& x) const {
  if (x.rows() != vectors_.rows())
    throw InvalidArgument(cat("x has ", x.rows(), " rows, must have ", vectors_.rows()));
  Matrix out(vectors_.cols(), x.cols());
  for (std::size_t i = 0; i < x.rows(); ++i)
    for (std::size_t j = 0; j < x.cols(); ++j) out(i, j) = negative_[i] ? -x(i, j) : x(i, j);
  for (std::size_t k = vectors_.rows(); k-- > 0;) reflect(k, out, 0);
  return out;
}

Qr householder_qr(const Matrix& a) {
  const Reflections factored(a);
  return {factored.q_times(Matrix::identity(a.cols())), factored.r()};
}

}  // namespace kvatlas::linalg

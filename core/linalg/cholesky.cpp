#include "core/linalg/cholesky.hpp"

#include <cmath>

#include "core/errors.hpp"

namespace kvatlas::linalg {

namespace {

void require_system(const Matrix& lower, const Matrix& b) {
  if (lower.rows() != lower.cols() || lower.rows() != b.rows())
    throw InvalidArgument(cat("lower is ", lower.rows(), " x ", lower.cols(), ", must be square with the ", b.rows(),
                              " rows of b"));
}

/// target -= factor * source, one fma an entry.
void subtract(std::span<double> target, double factor, std::span<const double> source) {
  for (std::size_t j = 0; j < target.size(); ++j) target[j] = fma(-factor, source[j], target[j]);
}

void forward(const Matrix& lower, Matrix& x) {
  for (std::size_t i = 0; i < x.rows(); ++i) {
    for (std::size_t k = 0; k < i; ++k) subtract(x.row(i), lower(i, k), x.row(k));
    for (double& v : x.row(i)) v /= lower(i, i);
  }
}

}  // namespace

std::optional<Matrix> cholesky(const Matrix& a) {
  if (a.rows() != a.cols()) throw InvalidArgument(cat("matrix is ", a.rows(), " x ", a.cols(), ", must be square"));
  require_finite(a, "matrix");
  const std::size_t n = a.rows();
  // Right-looking on the upper triangle: row k of `upper` is column k of L, and each entry still sees k in ascending order.
  Matrix upper = transpose(a);
  for (std::size_t k = 0; k < n; ++k) {
    const double pivot = upper(k, k);
    if (!(pivot > 0.0)) return std::nullopt;
    const double root = std::sqrt(pivot);
    upper(k, k) = root;
    for (std::size_t j = k + 1; j < n; ++j) upper(k, j) /= root;
    for (std::size_t i = k + 1; i < n; ++i) subtract(upper.row(i).subspan(i), upper(k, i), upper.row(k).subspan(i));
  }
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < i; ++j) upper(i, j) = 0.0;
  return transpose(upper);
}

Matrix cholesky_solve(const Matrix& lower, const Matrix& b) {
  require_system(lower, b);
  require_finite(b, "b");
  Matrix x = b;
  forward(lower, x);
  for (std::size_t i = x.rows(); i-- > 0;) {
    for (std::size_t k = x.rows(); k-- > i + 1;) subtract(x.row(i), lower(k, i), x.row(k));
    for (double& v : x.row(i)) v /= lower(i, i);
  }
  return x;
}

Matrix invert_lower(const Matrix& lower) {
  Matrix x = Matrix::identity(lower.rows());
  require_system(lower, x);
  forward(lower, x);
  return x;
}

}  // namespace kvatlas::linalg

#include "core/linalg/symmetric_eigen.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

#include "core/errors.hpp"

namespace kvatlas::linalg {

namespace {

constexpr int kMaxEigenSweeps = 30;

/// A row length whose multiples do not fall on the same cache sets: an odd number of cache lines.
std::size_t padded(std::size_t n) { return ((n + 7) / 8 | 1U) * 8; }

/// Makes entry (p, q) zero by one rotation from both sides. Rows turn, column q is copied from row q. Column p is left
/// behind: nothing reads it before the caller is done with p.
void annihilate(Matrix& a, Matrix& turns, std::size_t p, std::size_t q) {
  const std::size_t n = turns.rows();
  const double apq = a(p, q);
  const double zeta = (a(q, q) - a(p, p)) / (2.0 * apq);
  const double root = std::abs(zeta) + std::sqrt(1.0 + zeta * zeta);
  const double tangent = zeta >= 0.0 ? 1.0 / root : -1.0 / root;
  const double cosine = 1.0 / std::sqrt(1.0 + tangent * tangent);
  const double app = fma(-tangent, apq, a(p, p));
  const double aqq = fma(tangent, apq, a(q, q));
  rotate(a.row(p).first(n), a.row(q).first(n), cosine, cosine * tangent);
  rotate(turns.row(p), turns.row(q), cosine, cosine * tangent);
  a(p, p) = app, a(q, q) = aqq, a(p, q) = 0.0;
  for (std::size_t k = 0; k < n; ++k)
    if (k != p) a(k, q) = a(q, k);
}

}  // namespace

SymmetricEigen symmetric_eigen(const Matrix& matrix) {
  const std::size_t n = matrix.rows();
  if (n != matrix.cols()) throw InvalidArgument(cat("matrix is ", n, " x ", matrix.cols(), ", must be square"));
  require_finite(matrix, "matrix");
  Matrix a(n, padded(n));
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j <= i; ++j) a(i, j) = a(j, i) = matrix(i, j);
  const double tolerance = 0x1p-54 * std::sqrt(lane_dot(a.values(), a.values())) / static_cast<double>(n);
  Matrix turns = Matrix::identity(n);
  for (int sweep = 0; sweep < kMaxEigenSweeps; ++sweep) {
    bool turned = false;
    for (std::size_t p = 0; p < n; ++p) {
      for (std::size_t q = p + 1; q < n; ++q) {
        if (!(std::abs(a(p, q)) > tolerance)) continue;
        annihilate(a, turns, p, q);
        turned = true;
      }
      for (std::size_t k = 0; k < n; ++k) a(k, p) = a(p, k);
    }
    if (!turned) break;
  }
  std::vector<std::size_t> rank(n);
  std::iota(rank.begin(), rank.end(), std::size_t{0});
  std::stable_sort(rank.begin(), rank.end(), [&](std::size_t x, std::size_t y) { return a(x, x) > a(y, y); });
  SymmetricEigen out{std::vector<double>(n), Matrix(n, n)};
  for (std::size_t j = 0; j < n; ++j) {
    out.values[j] = a(rank[j], rank[j]);
    for (std::size_t i = 0; i < n; ++i) out.vectors(i, j) = turns(rank[j], i);
  }
  make_largest_positive(out.vectors);
  return out;
}

}  // namespace kvatlas::linalg

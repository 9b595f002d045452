// Householder QR, thin, with or without column pivoting.
#pragma once

#include <cstddef>
#include <vector>

#include "core/linalg/matrix.hpp"

namespace kvatlas::linalg {

/// Q as a product of reflections, and R. Sums over rows run in ascending row with fma; a column whose sum of squares is
/// below 2^-1000 counts as zero.
class Reflections {
 public:
  /// Factors the tall or square `a`, rows >= columns. With `pivot` each step takes the remaining column of largest norm
  /// (ties: the one that stands first), so the diagonal of R does not increase beyond rounding.
  /// throws   InvalidArgument if `a` is wide or not finite
  explicit Reflections(const Matrix& a, bool pivot = false);

  /// Upper triangular [cols, cols] with a diagonal that is not negative.
  const Matrix& r() const { return r_; }
  /// Column j of Q R is column order()[j] of a.
  const std::vector<std::size_t>& order() const { return order_; }
  /// Q x for x [cols, any]; Q itself is never formed.
  Matrix q_times(const Matrix& x) const;

 private:
  void reflect(std::size_t k, Matrix& target, std::size_t first_col) const;

  Matrix vectors_;              // row k: the k-th reflection vector, zero before entry k
  std::vector<double> scales_;  // reflection k is I - scale v v^T
  std::vector<bool> negative_;  // rows of R, columns of Q that change sign
  Matrix r_;
  std::vector<std::size_t> order_;
};

struct Qr {
  Matrix q;  // [rows, cols], orthonormal columns even where a has deficient rank
  Matrix r;  // [cols, cols]
};

/// Thin QR without pivoting.
Qr householder_qr(const Matrix& a);

}  // namespace kvatlas::linalg

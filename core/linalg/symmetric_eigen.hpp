// Eigenvalues and eigenvectors of a symmetric matrix by the cyclic Jacobi method.
#pragma once

#include <vector>

#include "core/linalg/matrix.hpp"

namespace kvatlas::linalg {

struct SymmetricEigen {
  std::vector<double> values;  // descending; equal values keep the order in which the sweeps left them
  Matrix vectors;              // column j belongs to value j; its entry of largest magnitude is positive (ties: lowest row)
};

/// a = vectors diag(values) vectors^T; reads the lower triangle. Pairs (p, q), p < q, in row order; a pair turns if
/// |a(p, q)| > 2^-54 |a| / n with the Frobenius norm at the start; it ends after the first sweep that turned none, at the
/// latest after 30.
/// throws   InvalidArgument if `a` is not square or not finite
SymmetricEigen symmetric_eigen(const Matrix& a);

}  // namespace kvatlas::linalg

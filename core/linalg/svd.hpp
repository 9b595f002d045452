// Singular value decompositions whose bits are the same on every machine: a full one by one-sided Jacobi, a truncated one
// by block subspace iteration for large matrices.
#pragma once

#include <cstddef>
#include <vector>

#include "core/linalg/matrix.hpp"
#include "core/philox.hpp"

namespace kvatlas::linalg {

/// a = u diag(sigma) v^T with orthonormal columns. sigma descends; equal values keep the order in which the sweeps left
/// them. The entry of largest magnitude of each column of v is positive (ties: lowest row), and u follows; where sigma is
/// 0 the two are independent and each obeys the rule.
struct Svd {
  Matrix u;                   // [rows, r]
  std::vector<double> sigma;  // [r]
  Matrix v;                   // [cols, r]
};

/// All min(rows, cols) singular values. A wide matrix is transposed. QR with column pivoting, then cyclic one-sided Jacobi
/// on the rows of R: pairs (p, q), p < q, in row order; norms and products are lane dots; a pair turns if
/// |x.y| > 2^-52 sqrt(r) |x| |y|; it ends after the first sweep that turned none, at the latest after 30.
/// throws   InvalidArgument if an entry is not finite
Svd jacobi_svd(const Matrix& a);

struct SubspaceOptions {
  std::size_t rank = 1;        // singular values wanted
  std::size_t oversample = 8;  // the block is rank + oversample wide
  int iterations = 8;          // passes with a^T a
  RandomStream start{};        // entry (i, j) of the start is normal i * block + j
};

/// The first `rank` singular values and vectors, approximately. Random normal start; each pass Y <- Q(a^T Q(a Y)) with
/// Householder QR; then the Jacobi SVD of a Y. Where the block would cover the smaller side the full SVD is cut instead.
/// throws   InvalidArgument if an entry is not finite, or rank is 0 or above min(rows, cols)
Svd truncated_svd(const Matrix& a, const SubspaceOptions& options);

/// u diag(sigma) v^T.
Matrix compose(const Svd& svd);

}  // namespace kvatlas::linalg

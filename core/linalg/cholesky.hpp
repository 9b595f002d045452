// Cholesky factor of a symmetric positive definite matrix, and the systems that it solves.
#pragma once

#include <optional>

#include "core/linalg/matrix.hpp"

namespace kvatlas::linalg {

/// Lower L with a = L L^T; nothing when a pivot is not positive. Reads the lower triangle of `a`. Entry (i, j) starts at
/// a(i, j) and subtracts L(i, k) L(j, k) in ascending k with fma; then the root, or the division by the root.
/// throws   InvalidArgument if `a` is not square or not finite
std::optional<Matrix> cholesky(const Matrix& a);

/// x with L L^T x = b, column by column: forward in ascending k, backward in descending k, with fma.
Matrix cholesky_solve(const Matrix& lower, const Matrix& b);

/// L^-1, lower triangular.
Matrix invert_lower(const Matrix& lower);

}  // namespace kvatlas::linalg

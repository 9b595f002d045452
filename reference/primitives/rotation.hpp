// Orthogonal rotations of head vectors: the Sylvester-Hadamard transform in blocks, and a random matrix by QR.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/philox.hpp"
#include "core/view.hpp"

namespace kvatlas {

/// Each block of `block` values (a power of two that divides the row) times the Hadamard matrix over sqrt(block): butterflies
/// at distance 1, 2, 4, ..., then one product with the rounded reciprocal of the root. Its own inverse up to rounding.
void hadamard(std::span<float> row, int block);

/// The largest power of two that divides n >= 1.
constexpr int power_of_two_in(int n) { return n & -n; }

/// Orthogonal [dim, dim]: Q of the QR factors of a matrix of standard normals (element i * dim + j of `stream`), R's diagonal
/// not negative; made in float64 and rounded once.
Array random_rotation(int dim, const RandomStream& stream);

/// out_i = matrix row i . x, and out_j = sum_i matrix(i, j) x_i in ascending i with fma. Lengths as the matrix says.
void rotate(View<const float> matrix, std::span<const float> x, std::span<float> out);
void rotate_back(View<const float> matrix, std::span<const float> x, std::span<float> out);

}  // namespace kvatlas

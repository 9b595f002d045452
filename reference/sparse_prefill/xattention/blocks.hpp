// XAttention's blocks: the softmax mass of every block of a prompt, estimated from strided antidiagonals, and the choice.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/view.hpp"

namespace kvatlas::antidiagonal {

/// Which rule picks blocks; they differ in the first query chunk of the released code only (see choose_blocks).
enum class Rule : std::uint8_t { intended, official };

struct Grid {
  int stride = 16;   // tokens of one reduced row
  int block = 128;   // tokens of one block; a multiple of stride
  double norm = 1.0;
};

/// Estimated mass [q blocks][k blocks] of the queries [first, first + n) of one query head over keys [0, rows), both placed
/// absolutely; the first row is query block first / block.
///   reduced key row m     k[m s .. m s + s - 1] one behind the other, zeros past the last key
///   reduced query row i   q[i s + s - 1], ..., q[i s], zeros for queries outside this range
///   A[i, m], m <= i       softmax over m of qk_dot(row i, row m) * c, c = float(log2(e) / (sqrt(dim) s norm)): maximum, then
///                         exp2(x - maximum) / sum, the sum a lane_sum over m
///   mass                  lane_sum of a reduced row's A inside a block, then the block's reduced rows in order
/// Reduced rows without a query of the range count nothing. A row depends on its own queries and on keys up to its last
/// token alone, so chunks that end on block borders give the masses of the whole prompt.
/// q [n, dim], k [rows, dim], rows >= first + n
std::vector<std::vector<float>> block_mass(const Grid& grid, View<const float> q, std::int64_t first, View<const float> k);

/// Blocks that one query block attends to, from its masses up to the diagonal (the last one).
///   intended  block 0 and the diagonal; then the others by mass descending, lower block first, each as long as the mass kept
///             before it is below threshold * total (float64 sums in the order of keeping)
///   official  as the released code runs in its first query chunk: only the diagonal counts as mandatory, the sum lags one
///             block behind (the first other is kept whenever anything is required), and block 0 is switched on at the end
std::vector<std::uint8_t> choose_blocks(std::span<const float> mass, double threshold, Rule rule);

/// Tokens of a query chunk of the released code for a prompt of n tokens.
std::int64_t official_chunk(std::int64_t n);

}  // namespace kvatlas::antidiagonal

#include "reference/primitives/rotation.hpp"

#include <algorithm>
#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/linalg/qr.hpp"

namespace kvatlas {

void hadamard(std::span<float> row, int block) {
  const auto n = static_cast<std::size_t>(block);
  KV_ASSERT(n > 0 && (n & (n - 1)) == 0 && row.size() % n == 0, "Hadamard blocks are powers of two that fill the row");
  const float factor = 1.0F / std::sqrt(static_cast<float>(block));
  for (std::size_t first = 0; first < row.size(); first += n) {
    for (std::size_t distance = 1; distance < n; distance *= 2)
      for (std::size_t i = 0; i < n; ++i) {
        if ((i & distance) != 0) continue;
        float &a = row[first + i], &b = row[first + i + distance];
        const float sum = a + b, difference = a - b;
        a = sum;
        b = difference;
      }
    for (std::size_t i = 0; i < n; ++i) row[first + i] = row[first + i] * factor;
  }
}

Array random_rotation(int dim, const RandomStream& stream) {
  const auto n = static_cast<std::size_t>(dim);
  linalg::Matrix gaussian(n, n);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) gaussian(i, j) = random_normal(stream, i * n + j);
  return linalg::to_array(linalg::householder_qr(gaussian).q);
}

void rotate(View<const float> matrix, std::span<const float> x, std::span<float> out) {
  for (std::int64_t i = 0; i < matrix.dim(0); ++i) out[static_cast<std::size_t>(i)] = num::lane_dot(matrix.row(i), x);
}

void rotate_back(View<const float> matrix, std::span<const float> x, std::span<float> out) {
  std::ranges::fill(out, 0.0F);
  for (std::int64_t i = 0; i < matrix.dim(0); ++i) {
    const auto row = matrix.row(i);
    for (std::size_t j = 0; j < row.size(); ++j) out[j] = num::fma(row[j], x[static_cast<std::size_t>(i)], out[j]);
  }
}

}  // namespace kvatlas

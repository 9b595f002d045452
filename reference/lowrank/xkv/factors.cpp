#include "reference/lowrank/xkv/factors.hpp"

#include <algorithm>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/linalg/svd.hpp"

namespace kvatlas::xkv_factors {
namespace {

std::vector<std::byte> pack(const linalg::Matrix& m, Dtype dtype) {
  std::vector<std::byte> bytes(m.values().size() * static_cast<std::size_t>(bytes_of(dtype)));
  const Array rounded = linalg::to_array(m);
  num::store(dtype, rounded.values(), bytes);
  return bytes;
}

}  // namespace

Factors factorize(View<const float> rows, std::int64_t rank, Dtype dtype, const RandomStream& start) {
  const linalg::Matrix a = linalg::from_view(rows);
  const auto r = static_cast<std::size_t>(rank);
  const bool small = static_cast<std::int64_t>(std::min(a.rows(), a.cols())) <= kJacobiSide;
  const linalg::Svd svd = small ? linalg::jacobi_svd(a) : linalg::truncated_svd(a, {.rank = r, .start = start});
  linalg::Matrix basis(r, a.cols());
  for (std::size_t j = 0; j < r; ++j)
    for (std::size_t c = 0; c < a.cols(); ++c) {
      basis(j, c) = svd.sigma[j] * svd.v(c, j);
      if (!num::is_finite(num::round_to(dtype, static_cast<float>(basis(j, c)))))
        throw Unsupported(cat("xkv: a singular value of ", svd.sigma[j], " does not fit ", name_of(dtype), "; use bf16"));
    }
  return {pack(linalg::first_columns(svd.u, r), dtype), pack(basis, dtype)};
}

void rebuild(const Factors& factors, std::int64_t rank, Dtype dtype, std::int64_t first, View<float> out) {
  const auto width = static_cast<std::size_t>(bytes_of(dtype)), r = static_cast<std::size_t>(rank);
  const auto dim = static_cast<std::size_t>(out.dim(1)), row_bytes = factors.basis.size() / r;
  Array basis({rank, out.dim(1)});
  for (std::size_t j = 0; j < r; ++j)
    num::load(dtype, std::span(factors.basis).subspan(j * row_bytes + static_cast<std::size_t>(first) * width, dim * width),
              basis.view().row(static_cast<std::int64_t>(j)));
  std::vector<float> coefficients(r);
  for (std::int64_t t = 0; t < out.dim(0); ++t) {
    num::load(dtype, std::span(factors.coefficients).subspan(static_cast<std::size_t>(t) * r * width, r * width), coefficients);
    const std::span<float> row = out.row(t);
    std::ranges::fill(row, 0.0F);
    for (std::size_t j = 0; j < r; ++j) {
      const std::span<const float> direction = basis.view().row(static_cast<std::int64_t>(j));
      for (std::size_t c = 0; c < dim; ++c) row[c] = num::fma(coefficients[j], direction[c], row[c]);
    }
    if (dtype != Dtype::f32) num::round_to(dtype, row);
  }
}

}  // namespace kvatlas::xkv_factors

// xkv's factorisation of one side of a group of layers: made once, stored in the dtype, multiplied out in a stated order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/layer_graph.hpp"
#include "core/philox.hpp"
#include "core/view.hpp"

namespace kvatlas::xkv_factors {

/// Up to this smaller side a factorisation is the full Jacobi SVD, cut; above it, block subspace iteration.
inline constexpr std::int64_t kJacobiSide = 256;

/// rows ~ coefficients * basis, both in the dtype.
struct Factors {
  std::vector<std::byte> coefficients;  // [prompt, rank]: left singular vectors
  std::vector<std::byte> basis;         // [rank, cols]: right singular vectors times singular values
};

/// The best factors of this rank. rows [prompt, cols]; `start` seeds the subspace iteration.
/// throws   Unsupported where a value of the basis overflows the dtype
Factors factorize(View<const float> rows, std::int64_t rank, Dtype dtype, const RandomStream& start);

/// out[t, c] = sum over j of coefficients[t, j] * basis[j, first + c], [prompt, out.dim(1)]: one float32 accumulator that
/// starts at 0, ascending j, fma; rounded to the dtype at the end.
void rebuild(const Factors& factors, std::int64_t rank, Dtype dtype, std::int64_t first, View<float> out);

}  // namespace kvatlas::xkv_factors

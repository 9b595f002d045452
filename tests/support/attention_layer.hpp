// One attention layer from its weights, written out in float64 apart from the rotation: the original, its conversion to
// latent rows unabsorbed, and the conversion absorbed, through a cache. Oracles for the method transmla.
#pragma once

#include "core/linalg/matrix.hpp"
#include "reference/faces.hpp"
#include "reference/method.hpp"

namespace kvatlas::test {

using linalg::Matrix;

/// The tensor as a matrix of its last axis by all others. throws InvalidArgument when it is missing
Matrix matrix_of(const TensorMap& tensors, const char* name);

/// Causal self-attention of x [tokens, hidden] with w_q, w_k, w_v, w_o (and b_q, b_k, b_v if present).
Matrix original_layer(const Matrix& x, const TensorMap& weights, const LayerClass& c);

/// The converted layer in its prompt form: keys and values of every head are made from the latent.
Matrix converted_layer(const Matrix& x, const Conversion& conversion, const LayerClass& original);

/// The same with the up-projections absorbed: rows go through `cache` (of conversion.shape, the class's first layer),
/// a prompt of `prompt` tokens and then single steps.
Matrix absorbed_layer(const Matrix& x, const Conversion& conversion, const LayerClass& original, KvCache& cache, std::int64_t prompt);

/// Random weights w_q, w_k, w_v, w_o and calibration [tokens, hidden] of a layer.
TensorMap random_layer(const LayerClass& c, std::int64_t hidden, std::int64_t tokens, std::uint64_t seed, bool biases = false);
Matrix random_inputs(std::int64_t tokens, std::int64_t hidden, std::uint64_t seed);

/// Largest |a - b| over the largest |b|.
double distance(const Matrix& a, const Matrix& b);

}  // namespace kvatlas::test

// The steps of a conversion of one attention layer to shared latent rows, each as a function over float64 matrices.
// Weights are [outputs, inputs] and act on a column of inputs; a bias is one more input column that always sees 1.
#pragma once

#include <cstddef>

#include "core/layer_graph.hpp"
#include "core/linalg/matrix.hpp"

namespace kvatlas::to_latent {

using linalg::Matrix;

/// What of a layer the steps need.
struct Widths {
  std::size_t q_heads = 0, kv_heads = 0, k_dim = 0, v_dim = 0;
  std::size_t rope_dim = 0;   // channels that keep their rotation after step 2
  std::size_t freqfold = 1;   // neighbouring frequencies that are treated as one
  RopeLayout layout = RopeLayout::half_split;

  std::size_t keys() const { return kv_heads * k_dim; }
  std::size_t values() const { return kv_heads * v_dim; }
  std::size_t q_per_kv() const { return q_heads / kv_heads; }
  std::size_t collapse() const { return k_dim / rope_dim; }
};

/// Step 1. Orthogonal map from key channels [kv_heads * k_dim] to channels in which the energy of every frequency stands
/// first: row h * rope_dim + 2 i (+ 1) is the real (imaginary) part of component h of the pair i, h < collapse * kv_heads.
/// A group of freqfold frequencies shares one eigenbasis of its channels over all heads, real and imaginary parts alike.
/// keys     [tokens, kv_heads * k_dim] before RoPE, as the calibration gives them
Matrix rope_rotation(const Widths& w, const Matrix& keys);

/// Step 0 and 1. `up` takes rotated key channels to the keys of every query head: rows q_heads * k_dim.
struct RotatedKeys {
  Matrix project;  // [kv_heads * k_dim, inputs]
  Matrix up;       // [q_heads * k_dim, kv_heads * k_dim]
};
RotatedKeys rotate_keys(const Widths& w, const Matrix& rotation, const Matrix& w_k);

/// [q_heads * v_dim, kv_heads * v_dim]: every query head reads its kv head.
Matrix value_up(const Widths& w);

/// Step 3. Mean column norm of the keys without rotation over that of the values behind the first rope_dim channels, over
/// balance_ratio; 1 where one of them has no columns or no energy.
double balance(const Widths& w, const Matrix& rotated_keys, const Matrix& values, double balance_ratio);

/// Step 4. Eigenvectors of X^T X + 0.01 mean(diagonal) I, in order of descending eigenvalues.
Matrix principal_axes(const Matrix& samples);

/// Converted weights, as float64.
struct Latent {
  Matrix q;     // [q_heads * (k_dim + rope_dim), inputs]: per head keys without rotation, then the rotary part
  Matrix kv_a;  // [rank + rope_dim, inputs]: the latent, then the shared rotary key
  Matrix kv_b;  // [q_heads * (k_dim + v_dim), rank]: per head the key without rotation, then the value
};

/// Steps 2 to 5 on rotated keys. `score_scale` is the original factor on q.k, `ratio` the balance of step 3, `axes` the
/// principal axes of [K_nope / ratio | V].
struct LatentInputs {
  const Matrix& w_q;
  const Matrix& w_v;
  const RotatedKeys& keys;
  const Matrix& axes;
  double ratio = 1.0;
  double score_scale = 1.0;
  std::size_t rank = 0;
};
Latent latent_weights(const Widths& w, const LatentInputs& in);

/// Factor on q.k of the converted layer: 1 / sqrt(k_dim + rope_dim), as in the official multi-head latent attention.
double latent_score_scale(const Widths& w);

/// Rows [first, first + count); the same of columns.
Matrix rows_of(const Matrix& a, std::size_t first, std::size_t count);
Matrix columns_of(const Matrix& a, std::size_t first, std::size_t count);

}  // namespace kvatlas::to_latent

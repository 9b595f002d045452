// Orthonormal DCT-II and DCT-III in float64, and the low-pass resample operator that shortens a token axis by keeping its
// lowest frequencies.
#pragma once

#include <span>
#include <vector>

#include "core/units.hpp"
#include "core/view.hpp"

namespace kvatlas {

/// X_k = c_k sum_t x_t cos(pi (2t + 1) k / 2N), c_0 = sqrt(1/N), c_k = sqrt(2/N); the sum runs in ascending t, product and
/// sum rounded apart, then the factor. The definition, quadratic in N.
std::vector<double> dct2(std::span<const double> x);

/// x_t = sum_k c_k X_k cos(pi (2t + 1) k / 2N) in ascending k: transpose and inverse of `dct2`.
std::vector<double> dct3(std::span<const double> coefficients);

/// Resamples `tokens` values to `kept`: DCT-II, the first `kept` coefficients, DCT-III, times sqrt(kept / tokens), so that
/// a constant stays itself. Linear, hence a matrix; its rows sum to 1.
class LowPass {
 public:
  /// throws   InvalidArgument unless 1 <= kept <= tokens
  LowPass(Tokens tokens, Tokens kept);

  Tokens tokens() const { return Tokens(matrix_.dims()[1]); }
  Tokens kept() const { return Tokens(matrix_.dims()[0]); }
  /// [kept, tokens], made in float64 and rounded once to float32.
  View<const float> matrix() const { return matrix_.view(); }

  /// out [kept, channels] = matrix * rows [tokens, channels]. Each output is one float32 accumulator that starts at 0 and
  /// runs in ascending token; product and sum are rounded apart (no fma).
  void apply(View<const float> rows, View<float> out) const;

 private:
  Array matrix_;
};

}  // namespace kvatlas

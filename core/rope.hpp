// Rotary position embedding: frequencies of every scaling scheme, float32 cos/sin made once in float64, and the
// canonical rotation. No libm, so a stored key has the same bits on every machine.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/layer_graph.hpp"
#include "core/view.hpp"

namespace kvatlas {

/// One sentence when the rotary embedding cannot exist; `row_dim` is the width of a row, or -1 if it is not known.
std::optional<std::string> why_not(const RopeSpec& spec, int row_dim = -1);

/// Radians that pair i turns per position, i = 0 .. rotary_dim / 2 - 1.
/// throws   InvalidArgument with the sentence of `why_not`
/// source   linear: arXiv 2306.15595; ntk: base * s^(d / (d - 2)); yarn: arXiv 2309.00071 in the form of Hugging Face
///          (ramp linear in the pair index); llama3: Llama 3.1 reference code
std::vector<double> rope_frequencies(const RopeSpec& spec);

/// Multiplies cos and sin, so a logit gets its square: `attention_factor`, or if that is 0 the scheme's own rule
/// (yarn: 0.1 ln(factor) + 1 for factor > 1; every other scheme: 1).
double rope_attention_factor(const RopeSpec& spec);

/// Pair indices between which yarn blends from unscaled (below low) to divided by factor (above high).
struct YarnRamp {
  double low = 0.0, high = 0.0;
};
YarnRamp yarn_ramp(const RopeSpec& spec);

/// base * factor^(d / (d - 2)): the base that stretches the slowest pair by exactly `factor`.
double ntk_base(double base, int rotary_dim, double factor);

/// Dynamic NTK: the spec that holds at `context` tokens. Up to `original_context` the unscaled spec; beyond it
/// base * (s * context / original_context - (s - 1))^(d / (d - 2)), s = factor. The result has scaling `none`. Rotated
/// keys that were written at another context do not fit it.
RopeSpec dynamic_ntk(const RopeSpec& spec, Tokens context);

/// cos and sin of one rotation, one entry a pair; many rows share it.
struct Rotation {
  std::vector<float> cos, sin;
};

/// Immutable, hence safe to share between threads. Positions in [0, cached) are looked up, all others computed by the
/// same code, so the number of cached positions never changes a bit.
class RopeTable {
 public:
  static constexpr std::int64_t kMaxPosition = std::int64_t{1} << 30;  // as far as num::sin reaches

  explicit RopeTable(const RopeSpec& spec, Tokens cached = Tokens(0));
  /// The same with given frequencies (rotary_dim / 2 of them) in place of those of `spec.scaling`.
  RopeTable(const RopeSpec& spec, std::vector<double> frequencies, Tokens cached = Tokens(0));

  const RopeSpec& spec() const { return spec_; }
  const std::vector<double>& frequencies() const { return frequencies_; }
  double attention_factor() const { return attention_factor_; }

  Rotation rotation(std::int64_t position) const;          // f cos, f sin with f = attention factor
  Rotation inverse_rotation(std::int64_t position) const;  // cos / f, -sin / f
  Rotation delta_rotation(std::int64_t delta) const;       // cos, sin unscaled: a rotated key has its factor already

  /// Rotates channels [first_channel, first_channel + rotary_dim) of a row in place; the others stay.
  /// Order: x' = x c - y s, y' = y c + x s; four rounded products, then one rounded sum each, no fma.
  void rotate(std::span<float> row, const Rotation& by) const;

  void apply(std::span<float> row, std::int64_t position) const;
  void apply_inverse(std::span<float> row, std::int64_t position) const;
  /// Moves a rotated row from one position to another by one rotation of the difference, which may be negative.
  void rerotate(std::span<float> row, std::int64_t from, std::int64_t to) const;

  /// All rows of [heads, n, dim]; row (h, i) is at positions[i].
  void apply(View<float> rows, std::span<const std::int64_t> positions) const;
  void apply_inverse(View<float> rows, std::span<const std::int64_t> positions) const;

 private:
  void fill(std::int64_t position, double gain, std::span<float> cos, std::span<float> sin) const;
  Rotation make(std::int64_t position, double gain, bool negate) const;
  void rotate(std::span<float> row, std::span<const float> cos, std::span<const float> sin) const;

  RopeSpec spec_;
  std::vector<double> frequencies_;
  double attention_factor_ = 1.0;
  std::int64_t cached_ = 0;
  std::vector<float> cos_, sin_;  // [cached, pairs], scaled by the attention factor
};

/// Reorders the rotary channels of a row written for interleaved pairs (2i, 2i + 1) to half-split pairs (i, i + d / 2).
/// Both layouts give the same q.k as long as q and k agree.
void interleaved_to_half_split(std::span<float> row, const RopeSpec& spec);
void half_split_to_interleaved(std::span<float> row, const RopeSpec& spec);

}  // namespace kvatlas

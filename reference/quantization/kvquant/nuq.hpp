// KVQuant's calibration: thresholds of each channel, and the non-uniform code table that fits normalised values best.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/philox.hpp"

namespace kvatlas::kvquant_nuq {

/// The value below which the share `rank` of the values lies, linear between neighbours: position rank * (n - 1) of the
/// ascending values, in float64.
double percentile(std::span<const float> ascending, double rank);

struct CodebookFit {
  std::vector<float> entries;  // ascending
  double inertia = 0;          // sum of weight * squared distance to the nearest entry
};

/// Weighted k-means on numbers: start by k-means++ (chances weight, later weight * squared distance; draw c of the stream
/// for entry c), then at most 50 rounds of nearest entry (the lower one of equals) and new means, sums in ascending value.
/// With fewer different values than entries: entries evenly spaced over [-1, 1]. `weights` empty = all 1.
CodebookFit fit_codebook(std::span<const float> values, std::span<const float> weights, int entries, const RandomStream& stream);

/// The index of the entry nearest to x; the first of equally near ones.
std::uint8_t nearest_entry(std::span<const float> codebook, float x);

/// 2^bits entries evenly spaced over [-1, 1].
std::vector<float> uniform_codebook(int bits);
/// Percentiles of the normal distribution, scaled to [-1, 1]: 2^(bits-1) of its negative half and one more of the positive
/// one, which share 0.
/// source   quant/kvquant/simquant_module_quantizer.py, NormalFloat branch
std::vector<float> normal_codebook(int bits);

/// Scale and offset that give decoded entries the mean and deviation of the values: s1 / s2 and m1 - m2 s1 / s2, with m1, s1
/// of the values and m2, s2 of their nearest entries. 1 and 0 where the entries do not vary.
struct Norm {
  float scale = 1, offset = 0;
};
Norm fit_norm(std::span<const float> values, std::span<const float> codebook);

}  // namespace kvatlas::kvquant_nuq

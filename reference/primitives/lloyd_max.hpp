// Scalar codebooks of rotated vectors: what is near a normal density after a rotation is coded by a few fixed levels.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvatlas {

/// Ascending Lloyd-Max levels of the standard normal density for 1 to 4 bits, in units of its deviation.
std::span<const float> gaussian_levels(int bits);

/// Levels for a coordinate of a rotated unit vector of `dim` channels as vLLM makes them: uniform bin centres of [-3.5, 3.5]
/// deviations (1 / sqrt(dim)), at most 200 Lloyd iterations over the normal density until no level moves by 1e-10, conditional
/// means by the trapezoid rule in 200 intervals, outer edges at 10.5 deviations; in float64, rounded once. bits 1 to 8.
std::vector<float> lloyd_levels(int dim, int bits);

/// Ascending thresholds between neighbouring levels: their means in float32.
std::vector<float> midpoints(std::span<const float> levels);
/// Number of midpoints <= x: a value on a midpoint goes up.
std::uint8_t level_of(std::span<const float> midpoints, float x);

}  // namespace kvatlas

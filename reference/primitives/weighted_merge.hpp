// Convex blends of rows: what happens to a value whose key is dropped.
#pragma once

#include <span>

namespace kvatlas {

/// receiver <- (receiver_weight * receiver + weight * row) / (receiver_weight + weight), computed as
/// receiver + w (row - receiver) with w = weight / (weight + receiver_weight) and one fma, then clamped to the two values:
/// equal values stay as they are and rounding cannot leave the segment between them. Both weights 0: w = 1/2.
void blend_into(std::span<float> receiver, float receiver_weight, std::span<const float> row, float weight);

}  // namespace kvatlas

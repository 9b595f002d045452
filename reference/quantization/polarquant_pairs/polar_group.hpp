// A group of keys as angle and radius of each pair of channels, both uniform codes over the group's own range.
#pragma once

#include <cstdint>
#include <vector>

#include "core/layer_graph.hpp"
#include "core/view.hpp"

namespace kvatlas::polar {

struct Pairing {
  bool neighbours = false;  // pairs (2j, 2j + 1), else (j, j + dim / 2): as the rotary embedding pairs channels
};

struct Range {
  float scale = 0, low = 0;
};
struct Group {
  std::vector<std::uint8_t> angle_codes, radius_codes;  // [tokens, pairs]
  std::vector<Range> angles, radii;                     // [pairs]
};

/// Every result is rounded to `work`: angle in [0, 2 pi), radius = root of the sum of squares, scale = (high - low) / 2^bits,
/// code = floor((x - low) / scale), at most the largest. A scale of 0 gives codes 0.
Group encode(View<const float> keys, int angle_bits, int radius_bits, Dtype work, Pairing pairing);

/// low + scale * (code + 1/2), low where scale is 0; then radius * cos and radius * sin of the angle.
void decode(const Group& group, View<float> keys, Pairing pairing);

}  // namespace kvatlas::polar

// How the softmax over a long context is split: tiles inside spans, spans merged in order.
#pragma once

#include <algorithm>

#include "core/units.hpp"

namespace kvatlas {

/// Tokens of one softmax tile.
inline constexpr std::int64_t kTile = 64;

/// Tokens of one span for a query that sees `visible` tokens: a sixteenth of them in whole tiles, 256 to 4,096.
/// A function of the count alone, so results depend on neither batch, split count nor processor count.
constexpr std::int64_t span_length(std::int64_t visible) {
  return std::clamp<std::int64_t>(round_up(ceil_div(visible, 16), kTile), 256, 4096);
}

constexpr std::int64_t span_count(std::int64_t visible) { return visible <= 0 ? 0 : ceil_div(visible, span_length(visible)); }

}  // namespace kvatlas

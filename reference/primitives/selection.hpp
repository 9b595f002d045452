// Which slots stay: top-k by score or by attention mass, lowest score, first and newest slots. Ascending slots everywhere.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvatlas {

/// Slots of a store in ascending order, each once.
using Slots = std::vector<std::int64_t>;

/// The k slots with the highest scores; of equal scores the lower slot is kept first (-0 equals +0).
/// throws InvalidArgument for a NaN score, or k outside [0, number of scores]
Slots top_k(std::span<const float> scores, std::int64_t k);

/// The same over fixed-point attention masses, compared as integers.
Slots top_k(std::span<const std::uint64_t> masses, std::int64_t k);

/// The slot with the lowest score, of equal scores the lowest slot.
/// throws InvalidArgument for a NaN score or for no scores
std::int64_t lowest(std::span<const float> scores);

/// The first `sinks` and the newest `recent` of n slots; all of them when they overlap.
Slots ends(std::int64_t n, std::int64_t sinks, std::int64_t recent);

/// `slots` (all below `first`) followed by [first, n).
Slots with_tail(Slots slots, std::int64_t first, std::int64_t n);

}  // namespace kvatlas

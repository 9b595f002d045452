// Binary signatures of pages: which of its tokens belong to the better half. Pages of unlike signatures stand for the many.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

namespace kvatlas::eviction {

enum class Anchor : std::uint8_t { random, zeros, ones, mean, alternating };
inline constexpr std::array<std::string_view, 5> kAnchorNames{"random", "zeros", "ones", "mean", "alternating"};

using Signature = std::vector<std::uint8_t>;

/// 1 for the floor(n / 2) tokens with the highest scores, of equal ones the first.
Signature better_half(std::span<const float> scores);

/// The signature to which pages of `page` bits are compared. mean: 1 where more than half of the pages have a 1;
/// alternating: 0, 1, 0, 1, ...; random: bits of `word(position)`.
Signature anchor_of(Anchor anchor, std::span<const std::uint8_t> bits, std::int64_t page, const std::function<std::uint32_t(std::int64_t)>& word);

/// Positions in which each page differs from the anchor.
std::vector<std::int64_t> distances_to(std::span<const std::uint8_t> anchor, std::span<const std::uint8_t> bits);

/// min(count, keep) of the pages in `evicted`, spread evenly over their distances: sorted by distance, then page, every
/// floor(count / keep)-th from the nearest on. In that order.
std::vector<std::int64_t> representatives(std::vector<std::int64_t> evicted, const std::vector<std::int64_t>& distances, std::int64_t keep);

}  // namespace kvatlas::eviction

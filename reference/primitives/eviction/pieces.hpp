// Choices that a scorer alone does not make: piece by piece over a prompt, or partly by lot. Their result is written as
// scores, 1 for slots that stay and 0 for others, so that the engine's own selection repeats it.
#pragma once

#include <array>
#include <functional>

#include "reference/primitives/eviction/scorers.hpp"

namespace kvatlas::eviction {

/// Scores that need nothing but a token's key and the keys that it is compared with: they can be asked of any part of a cache.
enum class KeyScore : std::uint8_t { keydiff, knorm };
inline constexpr std::array<std::string_view, 2> kKeyScoreNames{"keydiff", "knorm"};
Scorer scorer_of(KeyScore base);

/// Tokens of `count` that stay when the share `ratio` leaves, but at least one: trunc(count * (1 - ratio)) in float64.
std::int64_t kept_of(std::int64_t count, double ratio);

/// The prompt is cut in pieces of `length` tokens; each is scored by itself and keeps kept_of(its tokens, ratio) of them.
Scores choose_by_chunks(const Scorer& base, const Scene& scene, std::int64_t length, double ratio);
/// What all pieces of `rows` tokens keep together.
std::int64_t chunks_keep(std::int64_t rows, std::int64_t length, double ratio);

/// The first `budget` tokens are held; then `block` more at a time join them, all of these are scored, and the `budget` best
/// stay. Heads choose by themselves.
Scores choose_by_blocks(const Scorer& base, const Scene& scene, std::int64_t budget, std::int64_t block);

/// Of `scores`, the k - drawn best, and `drawn` of the others by lot without replacement, with odds exp(score / temperature)
/// (Gumbel noise from `uniform(slot)`, in [0, 1)). 1 for each chosen slot, else 0.
std::vector<float> choose_with_lot(std::span<const float> scores, std::int64_t k, std::int64_t drawn, double temperature,
                                   const std::function<float(std::int64_t slot)>& uniform);

}  // namespace kvatlas::eviction

#include "reference/primitives/eviction/signatures.hpp"

#include <algorithm>

#include "reference/primitives/selection.hpp"

namespace kvatlas::eviction {

Signature better_half(std::span<const float> scores) {
  Signature bits(scores.size(), 0);
  for (const std::int64_t t : top_k(scores, static_cast<std::int64_t>(scores.size() / 2))) bits[static_cast<std::size_t>(t)] = 1;
  return bits;
}

Signature anchor_of(Anchor anchor, std::span<const std::uint8_t> bits, std::int64_t page, const std::function<std::uint32_t(std::int64_t)>& word) {
  Signature out(static_cast<std::size_t>(page), anchor == Anchor::ones ? std::uint8_t{1} : std::uint8_t{0});
  const std::size_t pages = bits.size() / out.size();
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (anchor == Anchor::alternating) out[i] = static_cast<std::uint8_t>(i % 2);
    if (anchor == Anchor::random) out[i] = static_cast<std::uint8_t>(word(static_cast<std::int64_t>(i)) >> 31);
    if (anchor != Anchor::mean) continue;
    std::size_t ones = 0;
    for (std::size_t p = 0; p < pages; ++p) ones += bits[p * out.size() + i];
    out[i] = 2 * ones > pages ? 1 : 0;
  }
  return out;
}

std::vector<std::int64_t> distances_to(std::span<const std::uint8_t> anchor, std::span<const std::uint8_t> bits) {
  std::vector<std::int64_t> distances(bits.size() / anchor.size(), 0);
  for (std::size_t i = 0; i < distances.size() * anchor.size(); ++i) distances[i / anchor.size()] += bits[i] != anchor[i % anchor.size()] ? 1 : 0;
  return distances;
}

std::vector<std::int64_t> representatives(std::vector<std::int64_t> evicted, const std::vector<std::int64_t>& distances, std::int64_t keep) {
  const auto count = static_cast<std::int64_t>(evicted.size());
  keep = std::min(keep, count);
  if (keep == 0) return {};
  std::ranges::sort(evicted, [&](std::int64_t a, std::int64_t b) {
    const std::int64_t da = distances[static_cast<std::size_t>(a)], db = distances[static_cast<std::size_t>(b)];
    return da != db ? da < db : a < b;
  });
  std::vector<std::int64_t> kept;
  for (std::int64_t i = 0; i < keep; ++i) kept.push_back(evicted[static_cast<std::size_t>(i * (count / keep))]);
  return kept;
}

}  // namespace kvatlas::eviction

// Philox4x32-10, a counter-based generator: element `index` of the stream (seed, layer, head, step) is a function of these
// numbers alone, so threads, kernels and restarts agree without carrying a state.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/arith64.hpp"
#include "core/kv_fn.hpp"

namespace kvatlas {

/// Four words of 32 bits: what Philox counts with, and what it returns.
struct PhiloxBlock {
  std::uint32_t word[4];
  friend constexpr bool operator==(const PhiloxBlock&, const PhiloxBlock&) = default;
};

/// The ten rounds of Philox4x32.
/// source   Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Random123)
KV_FN inline PhiloxBlock philox4x32_10(PhiloxBlock counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * counter.word[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * counter.word[2];
    counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0, static_cast<std::uint32_t>(product1),
                static_cast<std::uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1, static_cast<std::uint32_t>(product0)}};
    key0 += 0x9E3779B9U;  // golden ratio
    key1 += 0xBB67AE85U;  // sqrt(3) - 1
  }
  return counter;
}

/// Which sequence of random numbers. What a use has no word for stays 0.
struct RandomStream {
  std::uint64_t seed = 0;
  std::uint32_t layer = 0;
  std::uint32_t head = 0;
  std::uint32_t step = 0;
};

/// Word `index` of a stream, index < 2^34: key = seed, counter = (index / 4, step, head, layer), word index mod 4.
KV_FN inline std::uint32_t random_word(const RandomStream& stream, std::uint64_t index) {
  const PhiloxBlock counter{{static_cast<std::uint32_t>(index / 4), stream.step, stream.head, stream.layer}};
  return philox4x32_10(counter, static_cast<std::uint32_t>(stream.seed), static_cast<std::uint32_t>(stream.seed >> 32))
      .word[index % 4];
}

/// Uniform in [0, 1): the upper 24 bits of the word times 2^-24, exact in float32.
KV_FN inline float random_uniform(const RandomStream& stream, std::uint64_t index) {
  return static_cast<float>(random_word(stream, index) >> 8) * 0x1p-24F;
}

/// Uniform integer in [0, n): the upper 32 bits of word * n. Its bias is below n / 2^32.
KV_FN inline std::uint32_t random_below(const RandomStream& stream, std::uint64_t index, std::uint32_t n) {
  return static_cast<std::uint32_t>((std::uint64_t{random_word(stream, index)} * n) >> 32);
}

/// Standard normal by Box and Muller in float64, host only. Words a = 2j, b = 2j + 1 of the stream give
/// u = (word a + 1) / 2^32 in (0, 1] and angle = 2 pi (word b) / 2^32; element 2j is sqrt(-2 ln u) cos(angle), element
/// 2j + 1 is sqrt(-2 ln u) sin(angle). The largest magnitude is sqrt(64 ln 2) = 6.66.
inline double random_normal(const RandomStream& stream, std::uint64_t index) {
  const std::uint64_t even = index & ~std::uint64_t{1};
  const double u = (static_cast<double>(random_word(stream, even)) + 1.0) * 0x1p-32;
  const double angle = 6.283185307179586476925286766559 * (static_cast<double>(random_word(stream, even + 1)) * 0x1p-32);
  const double radius = std::sqrt(-2.0 * num::log(u));
  return radius * (index % 2 == 0 ? num::cos(angle) : num::sin(angle));
}

}  // namespace kvatlas

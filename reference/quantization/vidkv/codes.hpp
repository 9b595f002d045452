// Codes of VidKV: two levels, three levels (five to a byte), and the transform of the channels that one bit is enough for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/layer_graph.hpp"

namespace kvatlas::vidkv {

/// Mean magnitude of a group: lane-tree sum of |x| over the count, rounded to `meta`.
float mean_magnitude(std::span<const float> x, Dtype meta);

/// 1 where x >= 0.
void encode_signs(std::span<const float> x, std::span<std::uint8_t> codes);
/// 2 where x > threshold, 0 where x < -threshold, else 1.
void encode_ternary(std::span<const float> x, float threshold, std::span<std::uint8_t> codes);

/// Five codes below 3 a byte, the first one lowest: c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4; the last byte is filled with 0.
constexpr std::int64_t trit_bytes(std::int64_t count) { return ceil_div(count, 5); }
void pack_trits(std::span<const std::uint8_t> codes, std::span<std::byte> out);
/// Any byte is legal: what is above 242 wraps in its highest code.
void unpack_trits(std::span<const std::byte> packed, std::span<std::uint8_t> codes);

/// The discrete Fourier transform of n real values as n reals: Re 0, (Re k, Im k) for 0 < k < n / 2, and Re n/2 where n is
/// even; unscaled, with e^(-2 pi i jk / n). Sums run in ascending j with fma in float64 and are rounded once.
class RealFourier {
 public:
  explicit RealFourier(int n);
  void forward(std::span<const float> x, std::span<float> components) const;
  void inverse(std::span<const float> components, std::span<float> x) const;

 private:
  std::size_t n_;
  std::vector<double> cos_, sin_;  // of 2 pi j / n
};

}  // namespace kvatlas::vidkv

#include "reference/quantization/vidkv/codes.hpp"

#include <cmath>

#include "core/arith.hpp"
#include "core/arith64.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"

namespace kvatlas::vidkv {

float mean_magnitude(std::span<const float> x, Dtype meta) {
  std::vector<float> magnitudes;
  for (const float f : x) magnitudes.push_back(std::fabs(f));
  return num::round_to(meta, num::lane_sum(magnitudes) / static_cast<float>(x.size()));
}

void encode_signs(std::span<const float> x, std::span<std::uint8_t> codes) {
  for (std::size_t i = 0; i < x.size(); ++i) codes[i] = x[i] >= 0.0F ? 1 : 0;
}

void encode_ternary(std::span<const float> x, float threshold, std::span<std::uint8_t> codes) {
  for (std::size_t i = 0; i < x.size(); ++i) codes[i] = x[i] > threshold ? 2 : x[i] < -threshold ? 0 : 1;
}

void pack_trits(std::span<const std::uint8_t> codes, std::span<std::byte> out) {
  KV_ASSERT(static_cast<std::int64_t>(out.size()) == trit_bytes(static_cast<std::int64_t>(codes.size())), "five trits a byte");
  for (std::size_t b = 0; b < out.size(); ++b) {
    unsigned value = 0;
    for (std::size_t i = 5; i-- > 0;) value = value * 3 + (5 * b + i < codes.size() ? codes[5 * b + i] : 0U);
    out[b] = static_cast<std::byte>(value);
  }
}

void unpack_trits(std::span<const std::byte> packed, std::span<std::uint8_t> codes) {
  for (std::size_t i = 0; i < codes.size(); ++i) {
    unsigned value = static_cast<unsigned>(packed[i / 5]);
    for (std::size_t skip = 0; skip < i % 5; ++skip) value /= 3;
    codes[i] = static_cast<std::uint8_t>(value % 3);
  }
}

RealFourier::RealFourier(int n) : n_(static_cast<std::size_t>(n)) {
  for (std::size_t j = 0; j < n_; ++j) {
    const double angle = 6.283185307179586476925 * static_cast<double>(j) / static_cast<double>(n_);
    cos_.push_back(num::cos(angle));
    sin_.push_back(num::sin(angle));
  }
}

void RealFourier::forward(std::span<const float> x, std::span<float> components) const {
  for (std::size_t c = 0; c < n_; ++c) {
    const std::size_t k = (c + 1) / 2;
    const bool imaginary = c > 0 && c % 2 == 0;
    double sum = 0;
    for (std::size_t j = 0; j < n_; ++j) {
      const std::size_t at = j * k % n_;
      sum = std::fma(static_cast<double>(x[j]), imaginary ? -sin_[at] : cos_[at], sum);
    }
    components[c] = static_cast<float>(sum);
  }
}

void RealFourier::inverse(std::span<const float> components, std::span<float> x) const {
  for (std::size_t j = 0; j < n_; ++j) {
    double sum = 0;
    for (std::size_t c = 0; c < n_; ++c) {
      const std::size_t k = (c + 1) / 2, at = j * k % n_;
      const bool imaginary = c > 0 && c % 2 == 0, alone = c == 0 || 2 * k == n_;  // others stand for a conjugate pair
      const double weight = (alone ? 1.0 : 2.0) * (imaginary ? -sin_[at] : cos_[at]);
      sum = std::fma(static_cast<double>(components[c]), weight, sum);
    }
    x[j] = static_cast<float>(sum / static_cast<double>(n_));
  }
}

}  // namespace kvatlas::vidkv

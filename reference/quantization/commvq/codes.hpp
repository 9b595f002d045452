// CommVQ's two codes: keys as sums of complex code numbers that commute with the rotary embedding, values as bits that a small
// trained network chooses and a matrix decodes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/view.hpp"

namespace kvatlas::commvq {

/// z of one kv head: [stages, 2 * entries, pairs], row 2m the real and row 2m + 1 the imaginary parts of number m of each pair.
/// Codeword entries * a + b is z_a + i z_b. Channel j of a key is the real, channel j + pairs the imaginary part of pair j.
struct KeyBook {
  View<const float> z;
  std::int64_t stages() const { return z.dim(0); }
  std::int64_t entries() const { return z.dim(1) / 2; }
};

/// Codeword of each stage: the nearest to what the stages before have left, of equals the lowest. key [2 * pairs] is scaled
/// to the unit sphere of all heads; squared distances are lane trees in float32.
std::vector<std::uint32_t> encode_key(const KeyBook& book, std::span<const float> key);
/// Adds the codewords in order of stages.
void decode_key(const KeyBook& book, std::span<const std::uint32_t> codes, std::span<float> key);

/// The value network of one layer; views of trained tensors.
struct ValueNet {
  std::span<const float> channel_scale, ln_weight, ln_bias;  // [channels]
  View<const float> w1, w2;                                  // [hidden, channels], [logits, hidden]
  std::span<const float> b1, b2;
  View<const float> embedding;                               // [code bits, channels]
};

struct ValueCode {
  std::vector<std::uint8_t> bits;
  float norm = 0;
};
/// x = v / (scale + 1e-6), norm = |x|; x / (norm + 1e-6), layer normalisation (epsilon 1e-5), linear, exact GELU, linear; of each four logits the
/// first largest gives two bits: 10, 01, 11, 00. Products are lane trees in float32. `logits` receives them if not null.
ValueCode encode_value(const ValueNet& net, std::span<const float> value, std::vector<float>* logits = nullptr);
/// y = sum of the embedding's rows whose bit is set, ascending; y / (|y| + 1e-6) * (norm + 1e-6) * (scale + 1e-6).
void decode_value(std::span<const float> channel_scale, View<const float> embedding, std::span<const std::uint8_t> bits, float norm, std::span<float> value);

/// The error function, to some 1e-15, by its series; no library call.
double erf_of(double x);

}  // namespace kvatlas::commvq

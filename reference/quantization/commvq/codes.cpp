#include "reference/quantization/commvq/codes.hpp"

#include <algorithm>
#include <cmath>

#include "core/arith.hpp"
#include "core/arith64.hpp"

namespace kvatlas::commvq {

namespace {

std::span<const float> number(const KeyBook& book, std::int64_t stage, std::int64_t m, bool imaginary) {
  return book.z.row(stage, 2 * m + (imaginary ? 1 : 0));
}

}  // namespace

std::vector<std::uint32_t> encode_key(const KeyBook& book, std::span<const float> key) {
  const std::size_t pairs = key.size() / 2;
  std::vector<float> rest(key.begin(), key.end()), without(key.size()), difference(key.size());
  std::vector<std::uint32_t> codes;
  for (std::int64_t stage = 0; stage < book.stages(); ++stage) {
    std::uint32_t best = 0;
    float least = num::infinity();
    for (std::int64_t a = 0; a < book.entries(); ++a) {
      const auto xa = number(book, stage, a, false), ya = number(book, stage, a, true);
      for (std::size_t j = 0; j < pairs; ++j) {
        without[j] = rest[j] - xa[j];
        without[pairs + j] = rest[pairs + j] - ya[j];
      }
      for (std::int64_t b = 0; b < book.entries(); ++b) {
        const auto xb = number(book, stage, b, false), yb = number(book, stage, b, true);
        for (std::size_t j = 0; j < pairs; ++j) {
          difference[j] = without[j] + yb[j];
          difference[pairs + j] = without[pairs + j] - xb[j];
        }
        const float distance = num::lane_dot(difference, difference);
        if (distance < least) {
          least = distance;
          best = static_cast<std::uint32_t>(a * book.entries() + b);
        }
      }
    }
    codes.push_back(best);
    const auto a = static_cast<std::int64_t>(best) / book.entries(), b = static_cast<std::int64_t>(best) % book.entries();
    for (std::size_t j = 0; j < pairs; ++j) {
      rest[j] = rest[j] - (number(book, stage, a, false)[j] - number(book, stage, b, true)[j]);
      rest[pairs + j] = rest[pairs + j] - (number(book, stage, a, true)[j] + number(book, stage, b, false)[j]);
    }
  }
  return codes;
}

void decode_key(const KeyBook& book, std::span<const std::uint32_t> codes, std::span<float> key) {
  const std::size_t pairs = key.size() / 2;
  std::ranges::fill(key, 0.0F);
  for (std::int64_t stage = 0; stage < book.stages(); ++stage) {
    const auto code = static_cast<std::int64_t>(codes[static_cast<std::size_t>(stage)]);
    const std::int64_t a = code / book.entries() % book.entries(), b = code % book.entries();
    const auto xa = number(book, stage, a, false), ya = number(book, stage, a, true), xb = number(book, stage, b, false), yb = number(book, stage, b, true);
    for (std::size_t j = 0; j < pairs; ++j) {
      key[j] = key[j] + (xa[j] - yb[j]);
      key[pairs + j] = key[pairs + j] + (ya[j] + xb[j]);
    }
  }
}

double erf_of(double x) {
  const double magnitude = std::fabs(x);
  if (magnitude > 6.0) return x < 0 ? -1.0 : 1.0;
  double term = magnitude, sum = 0;
  for (int n = 0; n < 150; ++n) {  // 2^n x^(2n+1) / (1 3 5 ... (2n+1)), all positive
    sum += term;
    term *= 2.0 * magnitude * magnitude / (2.0 * n + 3.0);
  }
  const double value = 1.1283791670955125739 * num::exp(-magnitude * magnitude) * sum;  // 2 / sqrt(pi)
  return x < 0 ? -value : value;
}

ValueCode encode_value(const ValueNet& net, std::span<const float> value, std::vector<float>* logits) {
  const std::size_t channels = value.size();
  std::vector<float> x(channels), centred(channels);
  for (std::size_t i = 0; i < channels; ++i) x[i] = value[i] / (net.channel_scale[i] + 1e-6F);
  ValueCode code;
  code.norm = std::sqrt(num::lane_dot(x, x));
  for (float& f : x) f = f / (code.norm + 1e-6F);
  const float mean = num::lane_sum(x) / static_cast<float>(channels);
  for (std::size_t i = 0; i < channels; ++i) centred[i] = x[i] - mean;
  const float spread = num::rsqrt(num::lane_dot(centred, centred) / static_cast<float>(channels) + 1e-5F);
  for (std::size_t i = 0; i < channels; ++i) x[i] = num::fma(centred[i] * spread, net.ln_weight[i], net.ln_bias[i]);
  std::vector<float> hidden(static_cast<std::size_t>(net.w1.dim(0))), out(static_cast<std::size_t>(net.w2.dim(0)));
  for (std::size_t i = 0; i < hidden.size(); ++i) {
    const auto h = static_cast<double>(num::lane_dot(net.w1.row(static_cast<std::int64_t>(i)), x) + net.b1[i]);
    hidden[i] = static_cast<float>(0.5 * h * (1.0 + erf_of(h * 0.70710678118654752440)));
  }
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = num::lane_dot(net.w2.row(static_cast<std::int64_t>(i)), hidden) + net.b2[i];
  for (std::size_t g = 0; g < out.size(); g += 4) {
    std::size_t best = 0;
    for (std::size_t i = 1; i < 4; ++i)
      if (out[g + best] < out[g + i]) best = i;
    code.bits.push_back(best == 0 || best == 2 ? 1 : 0);
    code.bits.push_back(best == 1 || best == 2 ? 1 : 0);
  }
  if (logits != nullptr) *logits = std::move(out);
  return code;
}

void decode_value(std::span<const float> channel_scale, View<const float> embedding, std::span<const std::uint8_t> bits, float norm, std::span<float> value) {
  std::ranges::fill(value, 0.0F);
  for (std::size_t b = 0; b < bits.size(); ++b) {
    if (bits[b] == 0) continue;
    const auto row = embedding.row(static_cast<std::int64_t>(b));
    for (std::size_t i = 0; i < value.size(); ++i) value[i] = value[i] + row[i];
  }
  const float length = std::sqrt(num::lane_dot(value, value)) + 1e-6F;
  for (std::size_t i = 0; i < value.size(); ++i) value[i] = value[i] / length * (norm + 1e-6F) * (channel_scale[i] + 1e-6F);
}

}  // namespace kvatlas::commvq

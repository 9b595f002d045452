#include "reference/primitives/attention.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/interruption.hpp"
#include "core/span_rule.hpp"

namespace kvatlas {

namespace {

constexpr int kLanes = 8;
constexpr double kLog2E = 1.4426950408889634074;

/// One span; acc is lanes x v_dim scratch.
void softmax_span(std::span<const float> x, View<const float> v, std::vector<float>& lanes, SoftmaxPart& part) {
  const std::int64_t n = static_cast<std::int64_t>(x.size());
  const std::int64_t dim = v.dim(1);
  std::fill(lanes.begin(), lanes.end(), 0.0F);
  std::array<float, kLanes> sum{};
  float m = -num::infinity();
  std::array<float, kTile> p{};
  for (std::int64_t tile = 0; tile < n; tile += kTile) {
    const std::int64_t count = std::min(kTile, n - tile);
    const float m_new = num::max(m, num::max_of(x.data() + tile, count));
    if (m_new != m && tile > 0) {  // multiplying by exp2(0) = 1 changes nothing
      const float a = num::exp2(m - m_new);
      for (float& s : sum) s *= a;
      for (float& f : lanes) f *= a;
    }
    m = m_new;
    for (std::int64_t t = 0; t < count; ++t) p[static_cast<std::size_t>(t)] = num::exp2(x[static_cast<std::size_t>(tile + t)] - m);
    for (std::int64_t t = 0; t < count; ++t) {
      const float w = p[static_cast<std::size_t>(t)];
      const float* row = v.data() + (tile + t) * v.stride(0);
      float* acc = lanes.data() + (t % kLanes) * dim;
      sum[static_cast<std::size_t>(t % kLanes)] += w;
      for (std::int64_t c = 0; c < dim; ++c) acc[c] = num::fma(w, row[c], acc[c]);
    }
  }
  for (int step = kLanes / 2; step >= 1; step /= 2)
    for (int lane = 0; lane < step; ++lane) {
      sum[static_cast<std::size_t>(lane)] += sum[static_cast<std::size_t>(lane + step)];
      float* a = lanes.data() + lane * dim;
      const float* b = lanes.data() + (lane + step) * dim;
      for (std::int64_t c = 0; c < dim; ++c) a[c] += b[c];
    }
  part.max = m;
  part.sum = sum[0];
  part.acc.assign(lanes.begin(), lanes.begin() + dim);
}

}  // namespace

float logit_scale(const LayerClass& c) {
  const double scale = c.score_scale > 0 ? c.score_scale : 1.0 / std::sqrt(static_cast<double>(c.k_dim));
  return static_cast<float>(kLog2E * scale);
}

void logits(std::span<const float> q, View<const float> k, float scale, std::span<float> x) {
  KV_ASSERT(static_cast<std::int64_t>(x.size()) == k.dim(0), "one logit a key");
  num::qk_dot_rows(q.data(), k.data(), k.stride(0), k.dim(0), static_cast<int>(q.size()), x.data());
  for (float& f : x) f *= scale;
}

SoftmaxPart softmax_part(std::span<const float> x, View<const float> v) {
  const std::int64_t n = static_cast<std::int64_t>(x.size());
  SoftmaxPart total{.max = -num::infinity(), .sum = 0, .acc = std::vector<float>(static_cast<std::size_t>(v.dim(1)), 0.0F)};
  if (n == 0) return total;
  interruption_point();  // a long prompt is many rows of these
  const std::int64_t length = span_length(n);
  std::vector<float> lanes(static_cast<std::size_t>(kLanes * v.dim(1)));
  SoftmaxPart part;
  for (std::int64_t first = 0; first < n; first += length) {
    const std::int64_t count = std::min(length, n - first);
    softmax_span(x.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)), v.slice(0, first, count), lanes,
                 first == 0 ? total : part);
    if (first > 0) merge_into(total, part);
  }
  return total;
}

void merge_into(SoftmaxPart& left, const SoftmaxPart& right) {
  if (right.sum == 0) return;
  if (left.sum == 0) {
    left = right;
    return;
  }
  const float m = num::max(left.max, right.max);
  const float a = num::exp2(left.max - m), b = num::exp2(right.max - m);
  left.sum = num::fma(right.sum, b, left.sum * a);
  for (std::size_t c = 0; c < left.acc.size(); ++c) left.acc[c] = num::fma(right.acc[c], b, left.acc[c] * a);
  left.max = m;
}

void add_sink(SoftmaxPart& part, float sink) {
  if (part.sum == 0) return;
  const float m = num::max(part.max, sink);
  const float a = num::exp2(part.max - m), b = num::exp2(sink - m);
  part.sum = num::fma(part.sum, a, b);
  for (float& f : part.acc) f *= a;
  part.max = m;
}

void finish(const SoftmaxPart& part, std::span<float> out) {
  for (std::size_t c = 0; c < out.size(); ++c) out[c] = part.sum == 0 ? 0.0F : part.acc[c] / part.sum;
}

void softmax_weights(std::span<const float> x, const SoftmaxPart& part, std::span<float> p) {
  for (std::size_t t = 0; t < x.size(); ++t) p[t] = num::exp2(x[t] - part.max) / part.sum;
}

}  // namespace kvatlas

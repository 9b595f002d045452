// Attention over a list of stored entries in canonical order: tiles in spans, spans merged left to right.
//
// Order of every operation, which a kernel must repeat:
//   logit     x_t = qk_dot(q, k_t) * c (+ bias_t), c = float(log2(e) * score scale); base-2 units from here on
//   span      span_length(n) entries, n = entries that this query sees; each span starts from maximum -inf, sum 0
//   tile      64 entries: m' = max(m, largest x of the tile), a = exp2(m - m'); every lane's sum and accumulators are
//             multiplied by a, then entry t of the tile goes to lane t mod 8, in increasing t:
//             p = exp2(x_t - m'), sum += p, acc[c] = fma(p, v_t[c], acc[c])
//   span end  the 8 lanes are added as butterflies 4, 2, 1
//   merge     left to right: m' = max(m1, m2), a = exp2(m1 - m'), b = exp2(m2 - m'),
//             sum = fma(sum2, b, sum1 * a), acc[c] = fma(acc2[c], b, acc1[c] * a)
//   output    acc[c] / sum
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer_graph.hpp"
#include "core/view.hpp"

namespace kvatlas {

/// c of the logits: log2(e) times the class's score scale (1/sqrt(k_dim) unless the class has its own), rounded once.
float logit_scale(const LayerClass& c);

/// Softmax state of a set of entries: maximum in base-2 units, sum of exponentials, unnormalised output.
struct SoftmaxPart {
  float max = 0;
  float sum = 0;
  std::vector<float> acc;  // [v_dim]
};

/// x[t] for `rows` keys. k is [rows, dim] with contiguous rows of stride k.stride(0).
void logits(std::span<const float> q, View<const float> k, float scale, std::span<float> x);

/// The state over all entries: x [n], v [n, v_dim].
SoftmaxPart softmax_part(std::span<const float> x, View<const float> v);

/// left <- left merged with right, in this order. A part without entries (sum 0) changes nothing.
void merge_into(SoftmaxPart& left, const SoftmaxPart& right);

/// A learned sink logit (base-2 units) joins the sum last; it has no value row.
void add_sink(SoftmaxPart& part, float sink);

/// out[c] = acc[c] / sum; zeros where no entry was seen.
void finish(const SoftmaxPart& part, std::span<float> out);

/// Normalised weights p[t] = exp2(x[t] - max) / sum of a finished state.
void softmax_weights(std::span<const float> x, const SoftmaxPart& part, std::span<float> p);

}  // namespace kvatlas

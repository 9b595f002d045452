// Attention over coded rows in exact integers: products of codes are summed as integers, which no order can change, and float32
// serves the steps, the zero points and the merge alone. For uniform integer codes: keys in groups along tokens (a scale and a
// zero point for each channel) or with one scale a token; values in groups along the channels of a token.
//
// Order of every operation, which a kernel must repeat (steps, codes and limbs: core/integer_steps.hpp):
//   query codes   for each group of tokens: r_c = q_c * scale_c, peak = largest |r_c|, (s, 1/s) = step of 32639 codes,
//                 q'_c = rint(r_c * 1/s); Z = lane_dot(q, zero). Keys with one scale a token: r_c = q_c, once for all tokens, no Z
//   logit         D = sum of q'_c * code_c, exact; groups along tokens: x = fma(float(D), s, Z) * c,
//                 one scale a token: x = ((float(D) * s) * scale_t) * c; plain rows: x = qk_dot(q, k_t) * c
//   tile          at most 128 tokens, from the start of a span: M = largest x, u_t = rint(exp2(x_t - M) * 65535), U = sum of u_t
//   weight codes  for each group of channels, coded rows alone: f_t = u_t * scale_t, peak = largest f_t, (s, 1/s) = step of
//                 65535 codes, w'_t = rint(f_t * 1/s); Z = 8 lanes, token t of the tile in lane t mod 8, fma(u_t, zero_t, sum) in
//                 increasing t, then butterflies 4, 2, 1
//   numerator     N_c = sum of w'_t * code_tc, exact; P_c = fma(u_t, v_tc, P_c) over plain rows in increasing t from 0;
//                 n_c = fma(float(N_c), s, Z) + P_c
//   span          from m = -inf, sum = 0, acc = 0, tile by tile: m' = max(m, M), a = exp2(m - m'), b = exp2(M - m'),
//                 sum = fma(float(U), b, sum * a), acc_c = fma(n_c, b, acc_c * a)
//   spans         as in reference/primitives/attention.hpp; output acc / sum
//
// Distance from the float mode. Let c be the logits' factor, T the tile, V the largest |value| and R the largest extent
// (codes - 1) * scale (one scale a token: 2^(bits-1) * scale) of the sequence, g = 2^-18 for the roundings of both modes' logits
// (at most 64 a logit, 2^-24 each), h = 2^-12 for those of both modes' sums (at most 80 merges and 512 sums of 8 lanes, each a few
// 2^-24), e the rounding of decoded values to the cache's dtype where the float mode does that (2^-9 of a bf16, 2^-11 of an fp16,
// and 2^-24; else 0):
//   logits    |dx_t| <= c * (s/2 * sum |code| + g * sum |q_c| (|code * scale| + |zero|) + e * sum |q_c k_c| + 2^-80) = d_t;
//             D = largest d_t: softmax weights change by factors within 2^(+-2D), outputs by (2^(2D) - 1) * V
//   weights   a tile's largest u is 65535, so its sum is at least that: rounding u moves an output by at most T / 65535 * V,
//             rounding w' by at most T / 131070 * R
//   output    |difference| <= (2^(2D) - 1 + T / 65535 + h + e) * V + (T / 131070 + h) * R
// Neither the context nor the number of spans stands in it but through h, which holds to 65,536 tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "reference/primitives/attention.hpp"

namespace kvatlas {

/// One head's rows of one side: the first `coded` as codes, the others plain.
struct CodedRows {
  std::int64_t coded = 0;
  int dim = 0;
  bool along_tokens = false;             // groups run along tokens: a scale and a zero for each channel of a block of group_size tokens
  int group_size = 0;
  std::span<const std::int16_t> codes{};  // [coded, dim], 0 to 255 or -128 to 127
  std::span<const float> scales{};        // [coded / group_size, dim], or [coded, dim / group_size]
  std::span<const float> zeros{};         // the same, or empty: none
  View<const float> plain{};              // [rows - coded, dim]
};

/// x[t] of all rows of one head.
/// throws   InvalidArgument for keys that are neither in groups along tokens nor of one scale a token, or wider than 256
void integer_logits(std::span<const float> q, const CodedRows& keys, float scale, std::span<float> x);

/// The state of rows [first, first + x.size()), a span of the context, in tiles of `tile` tokens.
/// throws   InvalidArgument for values in groups along tokens, or a tile above 128
SoftmaxPart integer_span(std::span<const float> x, const CodedRows& values, std::int64_t first, int tile);

/// The state over all rows: spans of their count, merged left to right.
SoftmaxPart integer_part(std::span<const float> x, const CodedRows& values, int tile);

/// The bound above, for one head: outputs of integer_part differ from those of the float mode by at most this.
struct IntegerBound {
  double logits = 0, outputs = 0;
};
/// k and v are the rows as the float mode reads them; `rounding` is e above.
IntegerBound integer_bound(std::span<const float> q, const CodedRows& keys, const CodedRows& values, View<const float> v, float scale, int tile, double rounding);

}  // namespace kvatlas

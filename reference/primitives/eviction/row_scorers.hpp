// Scorers from stored rows alone: lag-relative information, column norms, statistical leverage; and wrappers of other scores.
#pragma once

#include "reference/primitives/eviction/rule.hpp"

namespace kvatlas::eviction {

struct Lag {
  Tokens sinks{4};
  Tokens lag{128};     // tokens of a partition; each is measured against the next one
  bool ranked = true;  // ranks within the partition, else the scores themselves
};
/// Keys and values of a partition relative to the range of the next one, channel by channel (0 where the range is a point);
/// deviation over the channels (unbiased, float64 in ascending order), softmax over the partition; mean of both sides.
/// Sinks, the last whole partition and the tail score 1; a prompt shorter than sinks + 2 lags scores by age.
/// source   arXiv 2504.04704; kvpress lagkv_press.py
Scorer lag_relative(const Lag& how);

enum class CurSides : std::uint8_t { kv_product, kv_average, key, value };
struct Cur {
  Tokens sinks{4};
  CurSides sides = CurSides::kv_product;
  std::int64_t window = 16;  // tokens of a block whose norms sum to 1; 0: the whole prompt
  int projection = 0;        // random directions onto which rows are projected first; 0: none
  std::uint64_t seed = 0;
};
/// Squared norms as approximate leverage scores, normalised by block; sinks score 1. Float64, ascending slots.
/// source   CurDKV, arXiv 2509.15038; kvpress cur_press.py
Scorer column_norms(const Cur& how);

struct Leverage {
  int sketch = 48;  // columns of the Gaussian that keys before RoPE are multiplied with
  std::uint64_t seed = 0;
  std::int64_t first = 0, last = 0;  // tokens at both ends that take no part
  std::function<double(int head, std::int64_t channel, std::int64_t column)> draw{};  // other directions than the seed's
};
/// Raw statistical leverage of centred, sketched keys before RoPE (stored keys turned back), jitter 0.01 on the Gram matrix.
/// source   kvpress leverage_press.py; the sketch is N(0, 1) / sqrt(columns) drawn by (seed, layer, head)
Scores leverage_scores(const Scene& scene, const Leverage& how);

/// Base scores of all slots: slots that `base` leaves out get the largest score of the layer + 1, as kvpress forces them in.
Scores with_forced_tail(const Scene& scene, Scores scores);

}  // namespace kvatlas::eviction

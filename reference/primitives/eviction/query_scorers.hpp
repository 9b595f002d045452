// Scorers that expect future queries to be like the prompt's: from moments of its queries, or from all of them.
#pragma once

#include "reference/primitives/eviction/rule.hpp"

namespace kvatlas::eviction {

struct FutureQueries {
  Tokens sinks{4};               // first tokens, left out of the moments; they get no meaningful score and must be protected
  Tokens future_positions{512};  // positions after the prompt over which the rotation is averaged
};

/// Attention that Gaussian queries would pay, times the norm of the value. Order, for each query head: mean and covariance in
/// float64, turned by the mean rotation of the positions after the prompt, rounded once; z = mean.k c + (S k).k c^2 / 2 with
/// lane sums and c the score scale; softmax over the slots behind the sinks in float64, one sum in ascending slots; mean over
/// the group in ascending heads; (a + epsilon) * norm.
/// source   arXiv 2510.00636; kvpress expected_attention_press.py
struct ExpectedAttention {
  FutureQueries future{};
  bool covariance = true;
  bool value_norm = true;
  double epsilon = 0;
};
Scorer expected_attention(const ExpectedAttention& how);

/// Weight exp(tau (cos(mean future query, k) - largest cos)) times the leverage v'(I + SUM (w + 1e-6) v v')^-1 v, mean over the
/// group; cosines in float32 lane sums, the rest in float64, sums in ascending slots.
/// source   kvpress cap_press.py
Scorer weighted_leverage(const FutureQueries& future, double tau);

/// The mean rotation of `count` positions from `first`, applied to a row before RoPE, in place.
void rotate_by_mean(const RopeTable& rope, std::int64_t first, std::int64_t count, std::span<double> row);

/// Attention without a mask within chunks of the prompt, summed over its queries and the heads of a group in fixed point, mean over
/// the group, times the norm of the value, average of `kernel` neighbours. Slots [first, n - last) alone.
/// `padded`: as released, the last chunk is filled up with keys of logit 0 and queries of zeros, which count.
/// source   kvpress non_causal_attention_press.py
struct NonCausal {
  std::int64_t chunk = 256;
  std::int64_t first = 0, last = 0;
  bool scaled = false;  // logits times the class's scale; else q.k as it is, as released
  bool padded = false;
  int kernel = 3;
};
/// Raw scores, before any z-score; Scene::queries holds the whole prompt.
Scores non_causal_scores(const Scene& scene, const NonCausal& how);
/// The same as a scorer, which holds all queries of the prompt.
Scorer non_causal_attention(const NonCausal& how);

/// (score - mean) / deviation over all heads and slots: float64, heads then slots ascending, unbiased, at least 1e-6.
void z_score(Scores& scores);

}  // namespace kvatlas::eviction

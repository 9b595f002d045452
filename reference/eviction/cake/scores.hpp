// What CAKE measures: a layer's preference for budget, a token's score, and the rows that layers get.
#pragma once

#include <vector>

#include "reference/primitives/eviction/rule.hpp"

namespace kvatlas::methods::cake_parts {

using eviction::Counts;
using eviction::Scene;
using eviction::Scores;

struct Weights {
  double tau1 = 1, tau2 = 1;  // temperatures of entropy and variance in a layer's preference
  double gamma = 200;         // weight of the variance in a token's score
  int kernel = 5;
};

/// Entropy^(1/tau1) * variance^(1/tau2) of the window's weights on the slots before it, over all heads; float64, heads, then
/// queries, then slots ascending.
double preference(const Weights& w, const Scene& scene);

/// Mean + gamma * unbiased variance over the window, pooled, mean over the group, for the slots before the protected window; after
/// the prompt the step's own weights alone.
Scores token_scores(const Weights& w, Tokens protected_window, const Scene& scene);

/// Scores of the heads of a group, each pooled by average, and their mean.
std::vector<float> pooled_mean(const std::vector<std::vector<float>>& heads, int kernel);

/// Rows of each layer, window included. In a cascade layer m makes the layers before it give way: what they lost is gone.
Counts layer_rows(const std::vector<double>& asked, std::int64_t rows, Tokens budget, Tokens observation_window, bool cascade);

}  // namespace kvatlas::methods::cake_parts

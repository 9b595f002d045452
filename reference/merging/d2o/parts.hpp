// What D2O computes of its own: layers' shares by how unevenly their attention falls, the gate of a merge, and the merge.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

#include "reference/primitives/nearest_keys.hpp"

namespace kvatlas::methods::d2o_parts {

/// How evenly the heads of a layer differ: the unbiased variance of each head's attention sums over the tokens, scaled to [0, 1] over the heads
/// with 1e-6 in the divisor, and their mean. float64, tokens, then heads ascending.
/// masses  [heads][tokens] fixed point (num::to_mass)
double unevenness(const std::vector<std::vector<std::uint64_t>>& masses);

/// Share of the prompt that each layer keeps: softmax over the layers of the negative unevenness, times layers x `mean`, between 0.01 and 1.
std::vector<double> layer_shares(const std::vector<double>& unevenness, double mean);

/// Threshold of a merge: the mean of all cosines at first, then a moving average of those means.
struct Gate {
  double alpha = 0.5, beta = 0.5;
  static constexpr float kNone = std::numeric_limits<float>::infinity();  // nothing has left yet
};

/// Moves the threshold by `heads` of cosines and says which of the tokens that leave, in their order, merge: those whose mean over the heads reaches
/// it. Sums in float64, heads, then tokens ascending, rounded to float32 before they are compared.
/// heads  [heads][leaving], equally many in each
std::vector<bool> pass(const Gate& gate, const std::vector<Nearest>& heads, float& threshold);

enum class Weights : std::uint8_t { code, paper };
inline constexpr std::array<std::string_view, 2> kWeightsNames{"code", "paper"};

/// The rows at `kept` after the merge. code: (x + sum of u_i x_i) / (1 + count); paper: (e x + sum of exp(u_i) x_i) / (e + sum of exp(u_i)), u the
/// cosines. float64 in the order of `leaving`, one rounding.
/// rows     [n, dim]
/// returns  [kept][dim]; empty where nothing was merged
std::vector<std::vector<float>> merged_rows(View<const float> rows, const Slots& kept, const Slots& leaving, const Nearest& nearest, const std::vector<bool>& merges,
                                            Weights weights);

}  // namespace kvatlas::methods::d2o_parts

#include "reference/primitives/eviction/lookahead.hpp"

#include "reference/primitives/eviction/scorers.hpp"

namespace kvatlas::eviction {

Rule lookahead_rule(const char* name, const LookaheadParams& p) {
  const bool largest = p.reduce == JointReduce::max;
  const Tokens window = p.observation_window + 1_tok + p.lookahead;
  Rule r{.name = name,
         .scorer = window_attention(window, {.window = largest ? WindowReduce::max : WindowReduce::mean, .group = largest ? GroupReduce::max : GroupReduce::mean,
                                             .pooling = p.pooling, .kernel = p.kernel}),
         .budget = p.budget + 1_tok + p.lookahead};
  r.drafted = p.lookahead;
  if (p.kernel % 2 == 0) r.refusal = cat("kernel is ", p.kernel, ", must be odd");
  else if (p.budget < p.observation_window)
    r.refusal = cat("budget is ", p.budget.value, ", must be at least observation_window (", p.observation_window.value, ")");
  return r;
}

}  // namespace kvatlas::eviction

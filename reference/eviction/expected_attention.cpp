// expected_attention: tokens stay to which queries like those of the prompt, at positions after it, would pay attention.
// Source    sheet expected_attention; Devoto et al. 2025, section 3; kvpress expected_attention_press.py
// Keeps     budget tokens a kv head, the first `sinks` among them, and every generated token; keys after RoPE at true positions;
//           while the prompt runs, sums of its queries and of their products
// Deviates  moments are summed token by token in float64 as the prompt comes, where kvpress projects the whole prompt again
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/query_scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens sinks = 4_tok;
  Tokens future_positions = 512_tok;
  bool covariance = true;
  bool value_norm = true;
  double epsilon = 0;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept, sinks included"),
                      field(&Params::sinks, "sinks", "token", 0, 1 << 20, "first tokens, never evicted; their queries do not count"),
                      field(&Params::future_positions, "future_positions", "token", 1, 1 << 16, "positions after the prompt over which rotation is averaged"),
                      flag(&Params::covariance, "covariance", "queries vary around their mean"),
                      flag(&Params::value_norm, "value_norm", "expected weights count times the norm of the value"),
                      field(&Params::epsilon, "epsilon", "", 0, 1, "added to a weight before it meets the norm")};
  }
};

Rule rule(const Params& p, const CacheShape&) {
  return {.name = "expected_attention",
          .scorer = expected_attention({{p.sinks, p.future_positions}, p.covariance, p.value_norm, p.epsilon}),
          .sinks = p.sinks, .budget = p.budget};
}

}  // namespace

extern constinit const Method expected_attention{
    .slug = "expected_attention", .name = "Expected Attention", .family = Family::eviction,
    .paper = {.title = "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
              .url = "https://arxiv.org/abs/2510.00636", .year = 2025},
    .params = specs<Params>, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "Positions are counted from the start of the prompt. The mean of rotations shrinks fast channels, as the method means it. "
             "The variant with stored statistics is not offered: moments are those of the prompt itself.",
    .why_not = Faces<rule>::why_not, .needs_unrotated = always_unrotated, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

// lagkv: a token stays that stands out against the tokens which follow it, in its keys and values; no attention is needed.
// Source    sheet lagkv; Liang et al. 2025; kvpress lagkv_press.py
// Keeps     budget tokens a kv head; sinks, the last whole partition and the tail come first; keys after RoPE at true positions
// Deviates  a channel without range in the next partition counts 0 where the released code divides by zero
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/row_scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens sinks = 4_tok;
  Tokens lag = 128_tok;
  bool ranked = true;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept"),
                      field(&Params::sinks, "sinks", "token", 0, 1 << 20, "first tokens, the last to be evicted"),
                      field(&Params::lag, "lag", "token", 1, 1 << 16, "tokens of a partition"),
                      flag(&Params::ranked, "ranked", "partitions compete by ranks, so that each keeps an equal share")};
  }
};

Rule rule(const Params& p, const CacheShape&) {
  return {.name = "lagkv", .scorer = lag_relative({p.sinks, p.lag, p.ranked}), .budget = p.budget};
}

}  // namespace

extern constinit const Method lagkv{
    .slug = "lagkv", .name = "LagKV", .family = Family::eviction,
    .paper = {.title = "LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are Important",
              .url = "https://arxiv.org/abs/2504.04704", .year = 2025},
    .params = specs<Params>, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "With ranks, tokens of one rank in different partitions tie: the earlier partition keeps its token.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

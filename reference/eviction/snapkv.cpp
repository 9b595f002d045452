// snapkv: when the prompt is complete, each kv head keeps the tokens to which the prompt's last queries pay attention.
// Source    sheet snapkv; Li et al. 2024, section 4 and listing 1; official code snapkv/monkeypatch/snapkv_utils.py
// Keeps     budget tokens of the prompt, its last observation_window tokens among them, and every generated token; keys
//           after RoPE at true positions
// Deviates  one choice for each kv head where the official code repeats keys for every query head (granularity=query_head);
//           weights are summed in fixed point; kept tokens stay in the order of the text
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params : WindowParams {  // defaults: the published LongBench runs (c1024_w32_k7_maxpool)
  Tokens budget = 1024_tok;
  static constexpr auto fields() {
    return std::tuple_cat(
        std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept, observation window included")},
        window_fields());
  }
};

Rule rule(const Params& p, const CacheShape&) {
  return {.name = "snapkv", .refusal = p.refusal(p.budget), .scorer = window_attention(p.observation_window, p.reduce()),
          .budget = p.budget, .granularity = p.granularity};
}

/// The official code stores keys and values once for every query head.
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Params released = p;
  released.granularity = Granularity::query_head;
  return decode_plan(rule(released, shape), shape, h, counts);
}

constexpr Compat kCompat[] = {
    {"granularity=query_head", "keys and values are repeated before they are cached: q_heads / kv_heads times the bytes"},
    {"observation_window=64,kernel=5,pool_first=true,window_reduce=mean,pooling=avg", "kvpress pools every query head, then averages the group; 64, 5 and avg are its defaults"}};

}  // namespace

extern constinit const Method snapkv{
    .slug = "snapkv", .name = "SnapKV", .family = Family::eviction,
    .paper = {.title = "SnapKV: LLM Knows What You are Looking for Before Generation", .url = "https://arxiv.org/abs/2404.14469", .year = 2024},
    .params = specs<Params>, .compat = kCompat, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "Selection needs budget >= observation_window; kvpress also allows smaller budgets, where tied window tokens are "
             "picked arbitrarily. Scores are computed from the stored window queries after the prompt, not emitted by its "
             "attention. Released plan: the official code's rows for every query head.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .released_decode_plan = typed<released_decode_plan>, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

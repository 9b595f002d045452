// knorm: tokens with short keys stay; a key of small norm tends to collect attention.
// Source    sheet knorm; Devoto et al. 2024, section 3; kvpress knorm_press.py
// Keeps     budget tokens a kv head; keys after RoPE at true positions (rotation does not change a norm)
// Deviates  nowhere
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens recent_window = 0_tok;
  int skip_layers = 0;
  Trigger trigger = Trigger::prompt_end;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens kept"),
                      field(&Params::recent_window, "recent_window", "token", 0, 1 << 20, "newest tokens, never evicted"),
                      field(&Params::skip_layers, "skip_layers", "layer", 0, 1024, "first layers that keep everything"),
                      choice(&Params::trigger, "trigger", kTriggerNames, "once when the prompt is complete, or after every step too")};
  }
};

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "knorm", .scorer = key_norm(), .recent_window = p.recent_window, .budget = p.budget, .trigger = p.trigger};
  if (p.skip_layers > 0)
    r.layer_budget = [p](const Place& place, std::int64_t rows) { return place.ordinal < p.skip_layers ? rows : p.budget.value; };
  return r;
}

}  // namespace

extern constinit const Method knorm{
    .slug = "knorm", .name = "Key norm", .family = Family::eviction,
    .paper = {.title = "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", .url = "https://arxiv.org/abs/2406.11430", .year = 2024},
    .params = specs<Params>, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "KVCache-Factory stores kept tokens by rising norm and leaves the first two layers whole (skip_layers=2). With "
             "trigger=every_step the norms are computed anew from the stored keys at each step. With trigger=every_step a rejected token may have "
             "pushed out another one: no speculation then.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

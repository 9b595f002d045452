// keydiff: tokens whose keys point away from the mean key stay; similar keys stand for each other.
// Source    sheet keydiff; Park et al. 2025; kvpress keydiff_press.py
// Keeps     budget tokens a kv head; keys after RoPE at true positions
// Deviates  nowhere; blockwise prefill is the wrapper's affair
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens recent_window = 0_tok;
  Trigger trigger = Trigger::prompt_end;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens kept"),
                      field(&Params::recent_window, "recent_window", "token", 0, 1 << 20, "newest tokens, never evicted"),
                      choice(&Params::trigger, "trigger", kTriggerNames, "once when the prompt is complete, or after every step too")};
  }
};

Rule rule(const Params& p, const CacheShape&) {
  return {.name = "keydiff", .scorer = key_difference(), .recent_window = p.recent_window, .budget = p.budget, .trigger = p.trigger};
}

}  // namespace

extern constinit const Method keydiff{
    .slug = "keydiff", .name = "KeyDiff", .family = Family::eviction,
    .paper = {.title = "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained Environments",
              .url = "https://arxiv.org/abs/2504.15364", .year = 2025},
    .params = specs<Params>, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "The anchor is the mean of what is held, so one choice over the prompt and a choice after every step differ. With trigger=every_step a rejected token may have "
             "pushed out another one: no speculation then.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

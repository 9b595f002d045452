// tova: after every step the token leaves to which the newest query pays least attention; one choice for all heads of a layer.
// Source    sheet tova; Oren et al. 2024, section 4; official code src/tova_cache.py
// Keeps     budget tokens, the same in every head of a layer; keys after RoPE at true positions
// Deviates  weights are averaged in fixed point
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens recent_window = 0_tok;
  Trigger trigger = Trigger::every_step;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens kept"),
                      field(&Params::recent_window, "recent_window", "token", 0, 1 << 20, "newest tokens, never evicted"),
                      choice(&Params::trigger, "trigger", kTriggerNames, "once when the prompt is complete, or after every step too")};
  }
};

Rule rule(const Params& p, const CacheShape&) {
  return {.name = "tova", .scorer = last_attention(), .recent_window = p.recent_window, .budget = p.budget, .trigger = p.trigger};
}

constexpr Need kNeeds[] = {Need::attention_weights};
constexpr Compat kCompat[] = {
    {"trigger=prompt,recent_window=1", "kvpress evicts once, by the prompt's last query, and forces the newest token in"}};

}  // namespace

extern constinit const Method tova{
    .slug = "tova", .name = "TOVA", .family = Family::eviction,
    .paper = {.title = "Transformers are Multi-State RNNs", .url = "https://arxiv.org/abs/2401.06104", .year = 2024},
    .params = specs<Params>, .needs = kNeeds, .compat = kCompat,
    .serving = {.prefix_cache = kServingStep.prefix_cache,
                .paged_cache = {Works::yes, "all heads of a layer free the same slot"},
                .chunked_prefill = kServingStep.chunked_prefill,
                .cuda_graphs = kServingStep.cuda_graphs,
                .tensor_parallelism = {Works::partly, "weights are averaged over all heads of a layer: a small all-reduce a layer"},
                .speculation = kServingStep.speculation,
                .multi_turn = kServingStep.multi_turn},
    .exact_when = "budget=1M",
    .notes = "The prompt is cut to the budget at once, by its last query alone. A step of several tokens after the prompt evicts "
             "once, by its last query.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

// observed_attention: the mean attention that a token received from the queries that could see it, over the whole prompt.
// Source    sheet part 3.1, observed_attention; kvpress observed_attention_press.py; H2O's heavy hitters as an average
// Keeps     budget tokens a kv head; keys after RoPE at true positions; a mass of 8 bytes a slot until the prompt ends
// Deviates  weights are summed in fixed point; the divisor is a whole number (kvpress rounds it to the model's dtype)
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/observed.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens recent_window = 0_tok;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens kept"),
                      field(&Params::recent_window, "recent_window", "token", 0, 1 << 20, "newest tokens, never evicted")};
  }
};

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "observed_attention", .scorer = mean_observed(), .recent_window = p.recent_window, .budget = p.budget};
  observe_mass(r);
  return r;
}

constexpr Need kNeeds[] = {Need::attention_weights};

}  // namespace

extern constinit const Method observed_attention{
    .slug = "observed_attention", .name = "Observed attention", .family = Family::eviction,
    .paper = {.title = "kvpress: LLM KV cache compression made easy", .url = "https://github.com/NVIDIA/kvpress", .year = 2024},
    .params = specs<Params>, .needs = kNeeds, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "The average over queries takes away the lead that old tokens have in a sum; the newest tokens are judged by few queries. "
             "Needs every attention weight of the prompt: a second pass beside a fused kernel.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

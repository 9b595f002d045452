// pyramidkv: SnapKV's choice with budgets that fall from the first layer to the last one.
// Source    sheet pyramidkv; Cai et al. 2024, section 3.3; KVCache-Factory pyramidkv_utils.py
// Keeps     budget tokens on average over the layers, the observation window in all of them, and every generated token; keys
//           after RoPE at true positions
// Deviates  schedule=exact spreads the rounding so that the layers' sum is the budget; one choice for each kv head
#include "reference/primitives/eviction/allocators.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params : WindowParams {
  Tokens budget = 1024_tok;
  int beta = 20;
  Schedule schedule = Schedule::exact;
  constexpr Params() { kernel = 5, pooling = Pooling::avg; }
  static constexpr auto fields() {
    return std::tuple_cat(
        std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept on average over layers, observation window included"),
                   field(&Params::beta, "beta", "", 1, 1024, "mean budget over that of the last layer"),
                   choice(&Params::schedule, "schedule", kScheduleNames, "how the falling line becomes whole tokens")},
        window_fields());
  }
};

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "pyramidkv", .refusal = p.refusal(p.budget), .scorer = window_attention(p.observation_window, p.reduce()),
         .budget = p.budget, .granularity = p.granularity};
  r.layer_budget = [pyramid = Pyramid{p.budget, p.observation_window, p.beta, p.schedule}](const Place& place, std::int64_t rows) {
    return pyramid_rows(pyramid, place, rows);
  };
  return r;
}

constexpr Compat kCompat[] = {
    {"schedule=floor", "steps of whole tokens: the layers' sum drifts above the budget, by 4.6% at budget 128 of 32 layers"},
    {"schedule=kvpress,observation_window=64,pool_first=true,window_reduce=mean",
     "kvpress counts the window as budget and falls back to equal budgets where the last layer would get less than the window"},
    {"granularity=query_head", "keys and values are repeated before they are cached: q_heads / kv_heads times the bytes"}};

}  // namespace

extern constinit const Method pyramidkv{
    .slug = "pyramidkv", .name = "PyramidKV", .family = Family::eviction,
    .paper = {.title = "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
              .url = "https://arxiv.org/abs/2406.02069", .year = 2024},
    .params = specs<Params>, .compat = kCompat, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "A prompt between budget and twice the budget less the window is cut alike in all layers, as released.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

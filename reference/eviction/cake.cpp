// cake: layers share one budget by how spread and how changing their attention is; tokens stay by mean and variance of attention.
// Source    sheet cake; Qin et al. 2025, sections 3 and 4; official code cake/cake_cache.py, cake/utils.py
// Keeps     budget tokens a head on average over the layers, the observation window in all of them; keys after RoPE at true
//           positions; each layer's share
// Deviates  weights stay in float32 (released: rounded to the model's dtype); layers are cut when the prompt is complete, to what the
//           released cascade leaves them; kept tokens stay in the order of the text, and steps pool over that (released: over the order
//           of scores)
#include "core/errors.hpp"
#include "reference/eviction/cake/scores.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens observation_window = 32_tok;
  double tau1 = 1;
  double tau2 = 1;
  double gamma = 200;
  int kernel = 5;
  bool cascade = true;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens kept on average over layers, observation window included"),
                      field(&Params::observation_window, "observation_window", "token", 2, 4096, "last prompt queries that score; newest tokens that always stay"),
                      field(&Params::tau1, "tau1", "", 0.1, 10, "temperature of the spread of attention in a layer's share"),
                      field(&Params::tau2, "tau2", "", 0.1, 10, "temperature of its change over the window in a layer's share"),
                      field(&Params::gamma, "gamma", "", 0, 10000, "weight of the variance in a token's score"),
                      field(&Params::kernel, "kernel", "token", 1, 255, "tokens of one pooling window, odd"),
                      flag(&Params::cascade, "cascade", "shares are cut while layers come in, so that none can grow back")};
  }
  cake_parts::Weights weights() const { return {tau1, tau2, gamma, kernel}; }
};

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "cake", .recent_window = p.observation_window, .budget = p.budget, .content_counts = true, .trigger = Trigger::every_step};
  if (p.kernel % 2 == 0) r.refusal = cat("kernel is ", p.kernel, ", must be odd");
  r.scorer = {.score = [p, w = p.weights()](const Scene& scene) { return cake_parts::token_scores(w, p.observation_window, scene); },
              .charge = [p](const Charge& to) { to.prompt ? charge_window(to, p.observation_window) : charge_last(to); },
              .window = p.observation_window, .weights_leave = true};
  r.weigh = [w = p.weights()](const Scene& scene) { return cake_parts::preference(w, scene); };
  r.allocate = [p](const std::vector<double>& asked, std::int64_t rows) { return cake_parts::layer_rows(asked, rows, p.budget, p.observation_window, p.cascade); };
  r.whole = p.budget + p.observation_window;
  return r;
}

constexpr Need kNeeds[] = {Need::attention_weights};

}  // namespace

extern constinit const Method cake{
    .slug = "cake", .name = "CAKE", .family = Family::eviction,
    .paper = {.title = "CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences", .url = "https://openreview.net/forum?id=EQgEMAD4kv", .year = 2025},
    .params = specs<Params>, .needs = kNeeds,
    .serving = {.prefix_cache = kServingStep.prefix_cache,
                .paged_cache = {Works::partly, "layers hold different numbers of pages, and each step frees one slot in their middle"},
                .chunked_prefill = kServingStep.chunked_prefill,
                .cuda_graphs = kServingStep.cuda_graphs,
                .tensor_parallelism = {Works::partly, "a layer's share sums over all heads"},
                .speculation = kServingStep.speculation,
                .multi_turn = kServingStep.multi_turn},
    .data_dependent = true, .exact_when = "budget=1M",
    .notes = "Temperatures of the authors (tau1, tau2), budgets 1024 and 128: Llama-3.1-8B (1.6, 0.4), (1.6, 0.6); Llama-2-7B (1.9, 1.8), (0.9, 2.3); "
             "Llama-2-13B (0.5, 0.4), (1.8, 2.0); Mistral-0.3-7B (0.8, 0.5), (1.0, 0.8); Qwen2.5-7B (1.5, 0.6), (0.4, 0.6). A step of several "
             "tokens evicts once, by its last queries.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

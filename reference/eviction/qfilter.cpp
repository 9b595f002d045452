// qfilter: tokens stay whose keys point against the main direction of the queries, which is known beforehand for each head.
// Source    sheet part 3.1, qfilter; Godey et al. 2025; kvpress qfilter_press.py
// Keeps     budget tokens a kv head; keys after RoPE at true positions; one direction a kv head comes from a file
// Deviates  nowhere
#include "core/arith.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"
#include "reference/primitives/eviction/trained.hpp"

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

Scores filtered(const Scene& scene, const NamedTensor& filters) {
  Scores scores(static_cast<std::size_t>(scene.rows.heads()));
  const std::int64_t dim = scene.c.k_dim;
  for (int h = 0; h < scene.rows.heads(); ++h) {
    const Array keys = scene.rows.keys(h);
    const auto filter = std::span(filters.values).subspan(static_cast<std::size_t>(h * dim), static_cast<std::size_t>(dim));
    for (std::int64_t t = 0; t < keys.dims()[0]; ++t) scores[static_cast<std::size_t>(h)].push_back(-num::lane_dot(keys.view().row(t), filter));
  }
  return scores;
}

Rule rule(const Params& p, const CacheShape& shape, const OpenInputs& in) {
  Rule r{.name = "qfilter", .recent_window = p.recent_window, .budget = p.budget, .trigger = p.trigger};
  r.scorer.charge = [](const Charge& to) { charge_rows(to, to.c.k_dim); };
  r.scorer.score = [filters = trained_by_layer(in, shape, "filters", [](const LayerClass& c) { return std::vector<std::int64_t>{c.kv_heads, c.k_dim}; })](
                       const Scene& scene) { return filtered(scene, filters.at(scene.place.layer)); };
  return r;
}

constexpr Need kNeeds[] = {Need::trained_file};

}  // namespace

extern constinit const Method qfilter{
    .slug = "qfilter", .name = "Q-Filters", .family = Family::eviction,
    .paper = {.title = "Q-Filters: Leveraging QK Geometry for Efficient KV Cache Compression", .url = "https://arxiv.org/abs/2503.02812", .year = 2025},
    .params = specs<Params>, .needs = kNeeds, .serving = kServingOnce,
    .notes = "The trained file holds layer<l>.filters [kv_heads, head_dim], in the model's own sign: a key along its filter is dropped. "
             "No attention weights are needed, so a fused kernel stays as it is. With trigger=every_step a rejected token may have "
             "pushed out another one: no speculation then.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = open_trained<rule>,
};

}  // namespace kvatlas::methods

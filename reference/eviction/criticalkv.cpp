// criticalkv: half of the budget goes by the score of a token, the other half by score times how far its value reaches the output.
// Source    sheet criticalkv; Feng et al. 2025, algorithm 1; kvpress criticalkv_press.py
// Keeps     budget tokens a kv head, the observation window among them, and every generated token; keys after RoPE at true positions
// Deviates  the window is protected and does not use up the first half, unless counts_window=true
#include <algorithm>
#include <cmath>
#include <map>

#include "core/arith.hpp"
#include "core/kernels/transform.hpp"
#include "core/parallel.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/row_scorers.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"
#include "reference/primitives/eviction/trained.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params : WindowParams {  // window, kernel and pooling: defaults of kvpress, whose press is the only code
  Tokens budget = 1024_tok;
  double first_stage = 0.5;
  double epsilon = 1e-4;
  bool counts_window = false;
  BaseScore score = BaseScore::snapkv;
  constexpr Params() { observation_window = 64_tok, kernel = 5, pooling = Pooling::avg, window_reduce = WindowReduce::mean; }
  static constexpr auto fields() {
    return std::tuple_cat(std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept"),
                                     field(&Params::first_stage, "first_stage", "", 0, 1, "share of the budget that goes by score alone"),
                                     field(&Params::epsilon, "epsilon", "", 0, 1, "added to a score before it meets the norm"),
                                     flag(&Params::counts_window, "counts_window", "the observation window uses up the first stage"),
                                     choice(&Params::score, "score", kBaseNames, "what ranks the tokens of a head")},
                          window_fields());
  }
};

using Weights = std::map<int, NamedTensor>;  // by layer: [hidden, q_heads * v_dim]

/// Mean over the query heads of a row owner of |W_o v|_1; of |v|_1 where no projection is known. Lane sums, then float64.
float reach(const LayerClass& c, const Weights& weights, int layer, int head, std::span<const float> v) {
  const auto found = weights.find(layer);
  double sum = 0;
  if (found == weights.end()) {
    for (const float x : v) sum += std::abs(static_cast<double>(x));
    return static_cast<float>(sum);
  }
  const std::int64_t width = found->second.dims[1];
  for (std::int64_t row = 0; row < found->second.dims[0]; ++row)
    for (int g = 0; g < c.q_per_kv(); ++g) {
      const std::int64_t at = row * width + std::int64_t{head * c.q_per_kv() + g} * c.v_dim;
      sum += std::abs(static_cast<double>(num::lane_dot(std::span(found->second.values).subspan(static_cast<std::size_t>(at), v.size()), v)));
    }
  return static_cast<float>(sum / c.q_per_kv());
}

Scores two_stages(const Params& p, const Weights& weights, const Scene& scene, Scores scores) {
  parallel_for(scene.rows.heads(), [&](std::int64_t h) {
    auto& head = scores[static_cast<std::size_t>(h)];
    const Array values = scene.rows.values(static_cast<int>(h));
    const std::int64_t tail = values.dims()[0] - static_cast<std::int64_t>(head.size()), k = p.budget.value - tail;
    const auto first = static_cast<std::int64_t>(std::trunc(static_cast<double>(p.counts_window ? p.budget.value : k) * p.first_stage)) - (p.counts_window ? tail : 0);
    const Slots sure = top_k(head, std::clamp<std::int64_t>(first, 0, static_cast<std::int64_t>(head.size())));
    for (std::size_t t = 0; t < head.size(); ++t)
      head[t] = (head[t] + static_cast<float>(p.epsilon)) * reach(scene.c, weights, scene.place.layer, static_cast<int>(h), values.view().row(static_cast<std::int64_t>(t)));
    for (const std::int64_t s : sure) head[static_cast<std::size_t>(s)] = num::infinity();
  });
  return scores;
}

Rule rule(const Params& p, const CacheShape& shape, const OpenInputs& in) {
  Rule r{.name = "criticalkv", .refusal = p.refusal(p.budget), .scorer = scorer_of(p.score, p), .budget = p.budget};
  r.granularity = p.granularity;
  const Weights weights = trained_by_layer(in, shape, "w_o", [](const LayerClass& c) { return std::vector<std::int64_t>{0, std::int64_t{c.q_heads} * c.v_dim}; });
  r.scorer.score = [p, weights, base = r.scorer.score](const Scene& scene) { return two_stages(p, weights, scene, base(scene)); };
  r.scorer.charge = [base = r.scorer.charge](const Charge& to) {
    base(to);  // and the output projection of every value, for every query head
    const std::int64_t hidden = std::int64_t{to.c.q_heads} * to.c.v_dim;
    to.plan.add(kernels::LowRank{.sequences = std::int64_t{to.history.sequences} * to.c.q_heads, .rows = to.rows.value, .rank = to.c.v_dim,
                                 .dim = hidden, .dtype = to.dtype}
                    .call(to.launches));
  };
  return r;
}

constexpr Need kNeeds[] = {Need::output_weights};
constexpr Compat kCompat[] = {{"counts_window=true,pool_first=true", "in kvpress the forced window uses up the first stage"}};

}  // namespace

extern constinit const Method criticalkv{
    .slug = "criticalkv", .name = "CriticalKV", .family = Family::eviction,
    .paper = {.title = "Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective",
              .url = "https://arxiv.org/abs/2502.03805", .year = 2025},
    .params = specs<Params>, .needs = kNeeds, .compat = kCompat, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "The output projection comes from a trained file (tensors layer<l>.w_o [hidden, q_heads * v_dim]); without one the norm is that of "
             "the value itself. The plan takes hidden as q_heads * v_dim.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

// simlayerkv: a layer whose newest queries look only at the first and newest tokens is lazy and keeps no others.
// Source    sheet part 3 (simlayerkv); Zhang et al. 2024; kvpress simlayerkv_press.py
// Keeps     all tokens of a layer, or of a lazy one `sinks` and recent_window - last_queries; every generated token; keys after
//           RoPE at true positions
// Deviates  nowhere
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  double threshold = 0.9;
  Tokens sinks = 4_tok;
  Tokens recent_window = 1024_tok;
  Tokens last_queries = 1_tok;
  static constexpr auto fields() {
    return std::tuple{field(&Params::threshold, "threshold", "", 0, 1, "a layer is lazy when more than this share of attention lies at both ends"),
                      field(&Params::sinks, "sinks", "token", 0, 1 << 20, "first tokens of a lazy layer"),
                      field(&Params::recent_window, "recent_window", "token", 1, 1 << 20, "newest tokens of a lazy layer, last_queries less"),
                      field(&Params::last_queries, "last_queries", "token", 1, 4096, "newest queries of the prompt that are asked")};
  }
  Tokens kept() const { return sinks + recent_window - last_queries; }
};

/// Share of the last queries' attention, mean over heads, that lies on the first and newest tokens before them.
double attention_at_ends(const Params& p, const Scene& scene) {
  std::uint64_t ends = 0;
  const std::int64_t queries = scene.queries.dim(1);
  for (int h = 0; h < scene.rows.heads(); ++h) {
    const Array keys = scene.rows.keys(h);
    for (const auto& mass : window_masses(scene.c, h, scene.queries, keys.view()))
      for (std::int64_t t = 0, n = static_cast<std::int64_t>(mass.size()); t < n; ++t) {
        const auto m = mass[static_cast<std::size_t>(t)];
        ends += (t < p.sinks.value ? m : 0) + (t >= n - p.recent_window.value ? m : 0);
      }
  }
  return static_cast<double>(ends) * 0x1p-31 / static_cast<double>(scene.c.q_heads * queries);
}

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "simlayerkv", .sinks = p.sinks, .budget = p.kept(), .content_counts = true};
  if (p.recent_window <= p.last_queries)
    r.refusal = cat("recent_window is ", p.recent_window.value, ", must be above last_queries (", p.last_queries.value, ")");
  r.scorer = {.charge = [p](const Charge& to) { charge_window(to, p.last_queries); }, .window = p.last_queries};
  r.measure = [p](const Scene& scene) {
    const std::int64_t rows = scene.rows.count(0);
    return rows <= p.kept().value || attention_at_ends(p, scene) <= p.threshold ? rows : p.kept().value;
  };
  // Expectation where nobody has looked: every second layer is lazy.
  r.layer_budget = [p](const Place& place, std::int64_t rows) { return place.ordinal % 2 == 1 ? p.kept().value : rows; };
  return r;
}

}  // namespace

extern constinit const Method simlayerkv{
    .slug = "simlayerkv", .name = "SimLayerKV", .family = Family::eviction,
    .paper = {.title = "SimLayerKV: A Simple Framework for Layer-Level KV Cache Reduction", .url = "https://arxiv.org/abs/2410.13846", .year = 2024},
    .params = specs<Params>, .serving = kServingOnce, .data_dependent = true, .exact_when = "recent_window=1M",
    .notes = "Thresholds of the authors: Llama-3 0.9 (assumed as default; kvpress has 1.0, which is off), Llama-2 0.65, Mistral 0.8, Qwen 0.85. Attention on tokens that are both among the first "
             "and the newest counts twice, as released. Predictions without content take every second layer as lazy.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

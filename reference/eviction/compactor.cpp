// compactor: leverage scores of keys blended with attention that ignores causality; no question is needed.
// Source    sheet part 3 (compactor, non_causal_attn); Chari and Van Durme 2025; kvpress compactor_press.py
// Keeps     budget tokens a kv head, the first `sinks` and newest `recent_window` among them, and every generated token; keys after
//           RoPE at true positions; while the prompt runs, all of its queries
// Deviates  ends are protected where kvpress gives them the largest score; the last chunk is not filled up unless padding=true
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/query_scorers.hpp"
#include "reference/primitives/eviction/row_scorers.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens sinks = 8_tok;
  Tokens recent_window = 4_tok;
  Tokens chunk = 256_tok;
  int sketch = 48;
  double blending = 0;
  bool padding = false;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept, both ends included"),
                      field(&Params::sinks, "sinks", "token", 0, 1 << 20, "first tokens, never evicted"),
                      field(&Params::recent_window, "recent_window", "token", 0, 1 << 20, "newest tokens, never evicted"),
                      field(&Params::chunk, "chunk", "token", 1, 1 << 16, "tokens that attend to each other when they are scored"),
                      field(&Params::sketch, "sketch", "", 1, 256, "random directions that keys are projected onto"),
                      field(&Params::blending, "blending", "", 0, 1, "weight of leverage beside attention; 0 = the share that is evicted"),
                      flag(&Params::padding, "padding", "fill up the last chunk with zeros that take part")};
  }
};

Scores blended(const Params& p, std::uint64_t seed, const Scene& scene) {
  const std::int64_t n = scene.rows.count(0), first = p.sinks.value, last = p.recent_window.value;
  Scores scores = non_causal_scores(scene, {.chunk = p.chunk.value, .first = first, .last = last, .padded = p.padding});
  Scores leverage = leverage_scores(scene, {.sketch = p.sketch, .seed = seed, .first = first, .last = last});
  z_score(scores);
  z_score(leverage);
  const float weight = p.blending > 0 ? static_cast<float>(p.blending) : 1.0F - static_cast<float>(p.budget.value) / static_cast<float>(n);
  for (std::size_t h = 0; h < scores.size(); ++h) {
    for (std::size_t t = 0; t < scores[h].size(); ++t) scores[h][t] += weight * leverage[h][t];
    scores[h].insert(scores[h].begin(), static_cast<std::size_t>(first), 0.0F);  // slots that always stay
  }
  return scores;
}

Rule rule(const Params& p, const CacheShape&, const OpenInputs& in) {
  Rule r{.name = "compactor", .sinks = p.sinks, .recent_window = p.recent_window, .budget = p.budget};
  r.scorer = {.score = [p, seed = in.seed](const Scene& scene) { return blended(p, seed, scene); },
              .charge = [p](const Charge& to) {
                charge_rows(to, to.c.k_dim, 2);
                charge_window(to, p.chunk);
                charge_rows(to, to.c.v_dim);
              },
              .window = Tokens(1 << 30)};
  return r;
}

constexpr Compat kCompat[] = {{"padding=true", "kvpress masks filled-up keys with -1e-9 instead of -1e9, and queries of zeros add uniform attention"}};

}  // namespace

extern constinit const Method compactor{
    .slug = "compactor", .name = "Compactor", .family = Family::eviction,
    .paper = {.title = "Compactor: Calibrated Query-Agnostic KV Cache Compression with Approximate Leverage Scores",
              .url = "https://arxiv.org/abs/2507.08143", .year = 2025},
    .params = specs<Params>, .compat = kCompat, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "Logits are not divided by the root of head_dim, as in kvpress. kvpress blends by its compression ratio unless told otherwise.",
    .why_not = Faces<rule>::why_not, .needs_unrotated = always_unrotated, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

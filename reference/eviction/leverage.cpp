// leverage: tokens stay whose keys before RoPE are statistically influential: leverage scores of a sketched key matrix.
// Source    sheet part 3 (leverage); Chari and Van Durme 2025; kvpress leverage_press.py
// Keeps     budget tokens a kv head; keys after RoPE at true positions
// Deviates  keys before RoPE are the stored ones turned back (rounded twice); the sketch is drawn by (seed, layer, head)
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
  int sketch = 48;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept"),
                      field(&Params::sketch, "sketch", "", 1, 256, "random directions that keys are projected onto")};
  }
};

Rule rule(const Params& p, const CacheShape&, const OpenInputs& in) {
  Rule r{.name = "leverage", .budget = p.budget};
  r.scorer = {.score = [how = Leverage{.sketch = p.sketch, .seed = in.seed}](const Scene& scene) {
                Scores scores = leverage_scores(scene, how);
                z_score(scores);
                return scores;
              },
              .charge = [](const Charge& to) { charge_rows(to, to.c.k_dim, 2); }};
  return r;
}

}  // namespace

extern constinit const Method leverage{
    .slug = "leverage", .name = "Leverage scores", .family = Family::eviction,
    .paper = {.title = "Compactor: Calibrated Query-Agnostic KV Cache Compression with Approximate Leverage Scores",
              .url = "https://arxiv.org/abs/2507.08143", .year = 2025},
    .params = specs<Params>, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "The query-agnostic half of compactor by itself. Positions are counted from the start of the prompt.",
    .why_not = Faces<rule>::why_not, .needs_unrotated = always_unrotated, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

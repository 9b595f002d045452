// cap: leverage of values under weights by how well a key meets the mean future query.
// Source    sheet part 3 (cap); kvpress cap_press.py
// Keeps     budget tokens a kv head, the first `sinks` among them, and every generated token; keys after RoPE at true positions;
//           while the prompt runs, sums of its queries
// Deviates  nowhere
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/query_scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens sinks = 4_tok;
  Tokens future_positions = 512_tok;
  double tau = 5;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept, sinks included"),
                      field(&Params::sinks, "sinks", "token", 0, 1 << 20, "first tokens, never evicted; their queries do not count"),
                      field(&Params::future_positions, "future_positions", "token", 1, 1 << 16, "positions after the prompt over which rotation is averaged"),
                      field(&Params::tau, "tau", "", 0, 50, "sharpness of the weight by the cosine of key and query")};
  }
};

Rule rule(const Params& p, const CacheShape&) {
  return {.name = "cap", .scorer = weighted_leverage({p.sinks, p.future_positions}, p.tau), .sinks = p.sinks, .budget = p.budget};
}

}  // namespace

extern constinit const Method cap{
    .slug = "cap", .name = "CAP (kvpress)", .family = Family::eviction,
    .paper = {.title = "kvpress: LLM KV cache compression made easy (cap_press)", .url = "https://github.com/NVIDIA/kvpress", .year = 2026},
    .params = specs<Params>, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "A press of kvpress. Positions are counted from the start of the prompt.",
    .why_not = Faces<rule>::why_not, .needs_unrotated = always_unrotated, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

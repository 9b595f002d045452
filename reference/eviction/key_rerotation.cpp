// key_rerotation: a wrapper that moves what a score keeps together: keys turn to the positions 0, 1, 2, ... and later tokens follow on.
// Source    sheet part 3.3, key_rerotation; kvpress key_rerotation_press.py
// Keeps     budget tokens a kv head and every generated token; keys after RoPE at the positions 0, 1, 2, ... of what is kept
// Deviates  a generated token takes the position behind the kept ones; under kvpress that is the caller's affair
#include "core/errors.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params : WindowParams {  // window, kernel and pooling: defaults of kvpress
  Tokens budget = 1024_tok;
  BaseScore score = BaseScore::keydiff;
  constexpr Params() { observation_window = 64_tok, kernel = 5, pooling = Pooling::avg, window_reduce = WindowReduce::mean; }
  static constexpr auto fields() {
    return std::tuple_cat(std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept"),
                                     choice(&Params::score, "score", kBaseNames, "what ranks the tokens of a head")},
                          window_fields());
  }
};

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "key_rerotation", .refusal = p.score == BaseScore::snapkv ? p.refusal(p.budget) : std::nullopt,
         .scorer = scorer_of(p.score, p), .budget = p.budget, .rerotate = true};
  r.granularity = p.granularity;
  return r;
}

}  // namespace

extern constinit const Method key_rerotation{
    .slug = "key_rerotation", .name = "Key re-rotation", .family = Family::eviction,
    .paper = {.title = "kvpress: LLM KV cache compression made easy", .url = "https://github.com/NVIDIA/kvpress", .year = 2024},
    .params = specs<Params>,
    .serving = kServingMoved,
    .exact_when = "budget=1M",
    .notes = "Without a rotary embedding nothing turns. Turning a stored key rounds it once more. The wrapped score is keydiff unless another is named. "
             "Heads keep different tokens, so one token has different positions in different heads, as in kvpress.",
    .why_not = Faces<rule>::why_not, .needs_unrotated = always_unrotated, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

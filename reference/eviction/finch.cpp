// finch: the question at the end of the prompt chooses what stays, and what stays moves together to new positions.
// Source    sheet part 3 (finch); Corallo and Papotti 2024; kvpress finch_press.py
// Keeps     budget tokens a kv head, the question among them, and every generated token; keys after RoPE at the positions 0, 1, 2, ...
//           of what is kept
// Deviates  the question's length is a parameter where kvpress looks for a delimiter token; a prompt is chosen from at once, not by
//           chunks
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens observation_window = 32_tok;
  bool normalize = true;
  bool rerotate = true;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept, the question included"),
                      field(&Params::observation_window, "observation_window", "token", 1, 4096, "tokens of the question at the end of the prompt; always kept"),
                      flag(&Params::normalize, "normalize", "a query's weights count times its position: later ones see more tokens"),
                      flag(&Params::rerotate, "rerotate", "kept keys move to neighbouring positions")};
  }
};

Rule rule(const Params& p, const CacheShape&) {
  return {.name = "finch", .scorer = position_weighted_attention(p.observation_window, p.normalize), .budget = p.budget, .rerotate = p.rerotate};
}

std::optional<std::string> needs_unrotated(const Params& p) {
  return p.rerotate ? std::optional("it turns kept keys to other positions (rerotate=false leaves them)") : std::nullopt;
}

}  // namespace

extern constinit const Method finch{
    .slug = "finch", .name = "FINCH", .family = Family::eviction,
    .paper = {.title = "FINCH: Prompt-guided Key-Value Cache Compression for Large Language Models", .url = "https://arxiv.org/abs/2408.00167", .year = 2024},
    .params = specs<Params>,
    .serving = kServingMoved,
    .exact_when = "budget=1M",
    .notes = "The position of a query stands for the number of tokens that it sees, one too few, as in kvpress. Turning a stored key rounds it "
             "once more. Generated tokens follow the kept ones, so the model sees a shorter text.",
    .why_not = Faces<rule>::why_not, .needs_unrotated = typed<needs_unrotated>, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

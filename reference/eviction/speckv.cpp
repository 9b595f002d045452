// speckv: a draft model writes the answer first, and the target's queries of that draft choose what its prompt keeps.
// Source    sheet speckv; Galim et al. 2025, arXiv 2506.08373; official code speckv/{speckv,util}.py
// Keeps     budget tokens of the prompt before its last one, the observation window among them, the last token and every generated
//           one; keys after RoPE at true positions
// Deviates  the last token's row stays where the official code drops it and feeds the token again; prompt attention is dense, where
//           the official code leaves out all but verticals and slashes of prompts above 4,096 tokens; weights are compared in fixed point
//
// What is handed in as the prompt is prompt and draft, as the target runs on both; its newest `lookahead` tokens are the draft's. They are
// gone after end_prefill(), and generation goes on at the position behind the prompt. crop() counts them as tokens that were handed in.
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/lookahead.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params : LookaheadParams {
  static constexpr auto fields() { return lookahead_fields(); }
};

Rule rule(const Params& p, const CacheShape&) { return lookahead_rule("speckv", p); }

/// The target reads prompt and draft; before that the draft model reads the prompt and writes `lookahead` tokens.
Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  const Rule r = rule(p, shape);
  Plan plan = eviction::prefill_plan(r, shape, h);
  const Tokens drafted(r.drafts(h.prompt.value));
  if (drafted.value > 0) add_draft(plan, p.draft, shape.dtype, h, h.prompt - drafted, drafted);
  return plan;
}

constexpr Need kNeeds[] = {Need::draft_model};

}  // namespace

extern constinit const Method speckv{
    .slug = "speckv", .name = "SpecKV", .family = Family::eviction,
    .paper = {.title = "Draft-based Approximate Inference for LLMs", .url = "https://arxiv.org/abs/2506.08373", .year = 2025},
    .params = specs<Params>, .needs = kNeeds, .serving = kServingOnce, .exact_when = "budget=1M,lookahead=0",
    .notes = "The official lookahead is the number of tokens to be generated; a prompt within the budget is not drafted there, and a plan "
             "charges the draft whenever lookahead is above 0. With lookahead=0 no draft runs: SnapKV with a joint maximum. The weights and "
             "the cache of the draft model are in no ledger.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = typed<prefill_plan>, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

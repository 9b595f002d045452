// speckv_pc: SpecPC shortens the prompt, then the draft's answer chooses what the target keeps of the short prompt.
// Source    sheet speckv_pc; Galim et al. 2025, arXiv 2506.08373; official code speckvpc/speckvpc.py
// Keeps     budget tokens of the short prompt before its last one, that one, and every generated token; keys after RoPE at the positions of
//           the short prompt
// Deviates  as specpc and speckv do
//
// Handed in are the prompt that the draft has read and behind it, as the prompt's end, the `lookahead` tokens that it wrote.
#include <algorithm>

#include "core/errors.hpp"
#include "core/kernels/select.hpp"
#include "reference/primitives/eviction/lookahead.hpp"
#include "reference/primitives/eviction/serving.hpp"
#include "reference/primitives/eviction/trained.hpp"
#include "reference/primitives/selected_prompt.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params : LookaheadParams {
  Tokens prompt_budget = 2048_tok;
  Tokens prompt_window = 64_tok;
  int prompt_kernel = 32;
  int neighbours = 32;
  bool ramp = true;
  int first_layer = 8;
  static constexpr auto fields() {
    return std::tuple_cat(
        lookahead_fields(),
        std::tuple{field(&Params::prompt_budget, "prompt_budget", "token", 1, 1 << 20, "tokens of the prompt that the target is shown, prompt_window included"),
                   field(&Params::prompt_window, "prompt_window", "token", 1, 4096, "newest tokens of the prompt: the draft's queries of them score, and they are shown"),
                   field(&Params::prompt_kernel, "prompt_kernel", "token", 1, 255, "tokens of one pooling window over the whole prompt"),
                   field(&Params::neighbours, "neighbours", "token", 0, 255, "tokens around a chosen one, itself included, that come with it"),
                   flag(&Params::ramp, "ramp", "newer queries of prompt_window count more, the oldest not at all"),
                   field(&Params::first_layer, "first_layer", "layer", 0, 255, "layer of the draft from which on attention counts")});
  }
};

PromptChoice prompt_choice(const Params& p) {
  return {.budget = p.prompt_budget.value, .window = p.prompt_window.value, .lookahead = p.lookahead.value, .kernel = p.prompt_kernel, .pooling = p.pooling,
          .largest = p.reduce == JointReduce::max, .neighbours = p.neighbours, .ramp = p.ramp, .first_layer = p.first_layer};
}

Rule rule(const Params& p) { return lookahead_rule("speckv_pc", p); }

Tokens drafted_of(const Params& p, const History& h) { return Tokens(std::clamp<std::int64_t>(h.prompt.value - 1, 0, p.lookahead.value)); }

/// The short prompt and the draft's tokens behind it.
History shown(const Params& p, const History& h) { return shown_history(h, p.prompt_budget, drafted_of(p, h)); }

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.prompt_budget < p.prompt_window)
    return cat("prompt_budget is ", p.prompt_budget.value, ", must be at least prompt_window (", p.prompt_window.value, ")");
  if (const auto reason = eviction::why_not(rule(p), shape)) return reason;
  return why_not_shown(shape);
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  return eviction::ledger_formula(rule(p), shape, shown(p, h), counts);
}

Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  return eviction::decode_plan(rule(p), shape, shown(p, h), counts);
}

Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan = eviction::prefill_plan(rule(p), shape, shown(p, h));
  const Tokens drafted = drafted_of(p, h), prompt = h.prompt - drafted;
  if (prompt <= p.prompt_budget && drafted.value == 0) return plan;
  add_draft(plan, p.draft, shape.dtype, h, prompt, drafted);
  if (prompt <= p.prompt_budget) return plan;
  add_draft_scores(plan, p.draft, shape.dtype, h, prompt, p.prompt_window + drafted, p.first_layer);
  plan.add(kernels::TopK{.rows = h.sequences, .candidates = prompt.value, .k = p.prompt_budget.value}.call(1.0));
  return plan;
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs& in) {
  require_trained("speckv_pc", in);
  return std::make_unique<SelectedPrompt>("speckv_pc", choose_prompt(*in.trained, "speckv_pc", prompt_choice(p)), eviction::open(rule(p), shape), shape);
}

constexpr Need kNeeds[] = {Need::draft_model, Need::trained_file};

}  // namespace

extern constinit const Method speckv_pc{
    .slug = "speckv_pc", .name = "SpecKV-PC", .family = Family::eviction,
    .paper = {.title = "Draft-based Approximate Inference for LLMs", .url = "https://arxiv.org/abs/2506.08373", .year = 2025},
    .params = specs<Params>, .needs = kNeeds, .serving = kServingShown, .exact_when = "budget=1M,prompt_budget=1M,lookahead=0",
    .notes = "The trained file is that of specpc, with prompt_window as its window. Pooling and reduction are the same in both steps, as in the official settings. "
             "The target's weight products of the prompt are in the simulator those of all tokens.",
    .why_not = typed<why_not>, .needs_unrotated = always_unrotated, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods

// specpc: a draft model reads the prompt, and the target is shown only the tokens to which the draft pays attention.
// Source    sheet specpc; Galim et al. 2025, arXiv 2506.08373; official code specpc/{specpc,specpc_utils}.py
// Keeps     budget tokens of the prompt, its newest observation_window among them, and every generated token; keys after RoPE at the
//           positions of the short prompt
// Deviates  tokens of equal score are ranked by index, and of two neighbours at one distance the lower comes first; weights are compared
//           in fixed point
//
// The draft's queries and keys come with the file (primitives/prompt_choice.hpp); the cache is handed the whole prompt and stores what was
// chosen (primitives/selected_prompt.hpp).
#include "core/errors.hpp"
#include "core/kernels/select.hpp"
#include "reference/primitives/draft_model.hpp"
#include "reference/primitives/eviction/lookahead.hpp"
#include "reference/primitives/eviction/serving.hpp"
#include "reference/primitives/eviction/trained.hpp"
#include "reference/primitives/selected_prompt.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens observation_window = 64_tok;
  Tokens lookahead = 1_tok;
  int kernel = 32;
  Pooling pooling = Pooling::max;
  JointReduce reduce = JointReduce::max;
  int neighbours = 32;
  bool ramp = true;
  int first_layer = 8;
  Draft draft = Draft::llama_3_2_1b;
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt that the target is shown, observation window included"),
        field(&Params::observation_window, "observation_window", "token", 1, 4096, "newest tokens of the prompt: their queries score, and they are shown"),
        field(&Params::lookahead, "lookahead", "token", 0, 8192, "tokens that the draft writes; their queries score"),
        field(&Params::kernel, "kernel", "token", 1, 255, "tokens of one pooling window"),
        choice(&Params::pooling, "pooling", kPoolingNames, "how a token's score gathers its neighbours'"),
        choice(&Params::reduce, "reduce", kJointNames, "how heads, queries, layers and steps become one score"),
        field(&Params::neighbours, "neighbours", "token", 0, 255, "tokens around a chosen one, itself included, that come with it"),
        flag(&Params::ramp, "ramp", "newer queries of the window count more, the oldest not at all"),
        field(&Params::first_layer, "first_layer", "layer", 0, 255, "layer of the draft from which on attention counts"),
        choice(&Params::draft, "draft", kDraftNames, "the draft model whose work a plan counts")};
  }
};

PromptChoice prompt_choice(const Params& p) {
  return {.budget = p.budget.value, .window = p.observation_window.value, .lookahead = p.lookahead.value, .kernel = p.kernel, .pooling = p.pooling,
          .largest = p.reduce == JointReduce::max, .neighbours = p.neighbours, .ramp = p.ramp, .first_layer = p.first_layer};
}

/// What the target is shown it keeps.
Rule rule() { return {.name = "specpc", .budget = Tokens(std::int64_t{1} << 40)}; }

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.budget < p.observation_window)
    return cat("budget is ", p.budget.value, ", must be at least observation_window (", p.observation_window.value, ")");
  return why_not_shown(shape);
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  return eviction::ledger_formula(rule(), shape, shown_history(h, p.budget), counts);
}

Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  return eviction::decode_plan(rule(), shape, shown_history(h, p.budget), counts);
}

/// The draft's forward over the whole prompt, its scores and the choice; then the target's attention over the short prompt.
Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan = eviction::prefill_plan(rule(), shape, shown_history(h, p.budget));
  if (h.prompt <= p.budget) return plan;
  add_draft(plan, p.draft, shape.dtype, h, h.prompt, p.lookahead);
  add_draft_scores(plan, p.draft, shape.dtype, h, h.prompt, p.observation_window + p.lookahead, p.first_layer);
  plan.add(kernels::TopK{.rows = h.sequences, .candidates = h.prompt.value, .k = p.budget.value}.call(1.0));
  return plan;
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs& in) {
  require_trained("specpc", in);
  return std::make_unique<SelectedPrompt>("specpc", choose_prompt(*in.trained, "specpc", prompt_choice(p)), eviction::open(rule(), shape), shape);
}

constexpr Need kNeeds[] = {Need::draft_model, Need::trained_file};

}  // namespace

extern constinit const Method specpc{
    .slug = "specpc", .name = "SpecPC", .family = Family::eviction,
    .paper = {.title = "Draft-based Approximate Inference for LLMs", .url = "https://arxiv.org/abs/2506.08373", .year = 2025},
    .params = specs<Params>, .needs = kNeeds, .serving = kServingShown, .exact_when = "budget=1M",
    .notes = "The trained file holds the draft's rows for one prompt: layer<l>.draft_queries [q_heads, min(observation_window, prompt) + lookahead, head_dim] and "
             "layer<l>.draft_keys [kv_heads, prompt + lookahead, head_dim] of its layers from first_layer on, after RoPE. The target runs fewer tokens: attention of the "
             "prompt is counted over those that it is shown, its weight products in the simulator still over all of them. The official "
             "settings for a Qwen2.5-0.5B draft pool over 64 tokens.",
    .why_not = typed<why_not>, .needs_unrotated = always_unrotated, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods

// duo_attention: retrieval heads keep every token, streaming heads the first and the newest; a trained gate a head says which it is.
// Source    sheet duo_attention; Xiao et al. 2024; official code duo_attn/utils.py (sparsify_attention_heads), patch/static_kv_cache.py
// Keeps     all tokens of the heads with the highest gates, of the others `sinks` and recent_window; keys after RoPE at true positions; running
//           sums of the heads' lengths
// Deviates  a prompt attends in full and is cut when it ends, as in kvpress (official: streaming heads see sinks and recent tokens alone
//           while the prompt runs); equal gates go to the lower layer, then head (official: to random noise)
#include <algorithm>
#include <cmath>
#include <map>

#include "core/errors.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/serving.hpp"
#include "reference/primitives/eviction/trained.hpp"
#include "reference/primitives/head_classes.hpp"
#include "reference/primitives/plans.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  double sparsity = 0.5;
  Tokens sinks = 64_tok;
  Tokens recent_window = 256_tok;
  static constexpr auto fields() {
    return std::tuple{field(&Params::sparsity, "sparsity", "", 0, 1, "share of streaming heads over all layers: 0.5 with grouped heads, 0.75 without, as published"),
                      field(&Params::sinks, "sinks", "token", 0, 1 << 20, "first tokens of a streaming head"),
                      field(&Params::recent_window, "recent_window", "token", 1, 1 << 20, "newest tokens of a streaming head")};
  }
  std::int64_t streaming_rows() const { return (sinks + recent_window).value; }
};

using Classes = std::map<int, std::vector<bool>>;  // by layer: whether each kv head keeps everything

/// Full heads of `heads`, at the quantile `sparsity` of gates that all differ.
double full_count(double sparsity, double heads) { return sparsity >= 1 ? 0 : sparsity <= 0 ? heads : heads - std::ceil(sparsity * (heads - 1)); }

/// Full heads are those whose gate is at least the quantile `sparsity` of all gates, linear between neighbours; all at 0, none at 1.
/// Gates are different, so these are as many as places at or above the quantile's.
Classes full_heads(double sparsity, const std::map<int, NamedTensor>& gates) {
  struct Head {
    float gate;
    int layer;
    std::size_t head;
  };
  std::vector<Head> all;
  Classes full;
  for (const auto& [layer, t] : gates) {
    full[layer].resize(t.values.size());
    for (std::size_t h = 0; h < t.values.size(); ++h) all.push_back({t.values[h], layer, h});
  }
  std::ranges::stable_sort(all, [](const Head& a, const Head& b) { return a.gate > b.gate; });
  const double count = full_count(sparsity, static_cast<double>(all.size()));
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) full[all[i].layer][all[i].head] = true;
  return full;
}

/// Rows that a head is expected to hold of `tokens`.
std::int64_t expected_rows(const Params& p, std::int64_t tokens) {
  const std::int64_t streaming = std::min(tokens, p.streaming_rows());
  return streaming + static_cast<std::int64_t>(std::trunc((1 - p.sparsity) * static_cast<double>(tokens - streaming)));
}

Rule rule(const Params& p, const CacheShape& shape, const OpenInputs& in) {
  Rule r{.name = "duo_attention", .sinks = p.sinks, .recent_window = p.recent_window, .budget = Tokens(p.streaming_rows()), .ragged = true,
         .content_counts = true, .trigger = Trigger::every_step};
  r.layer_budget = [p](const Place&, std::int64_t rows) { return expected_rows(p, rows); };
  r.head_budget = [p, full = full_heads(p.sparsity, trained_by_layer(in, shape, "gates", [](const LayerClass& c) { return std::vector<std::int64_t>{c.kv_heads}; }))](
                      const Place& place, int head, std::int64_t rows) {
    return full.at(place.layer)[static_cast<std::size_t>(head)] ? rows : p.streaming_rows();
  };
  return r;
}

/// Formulas see a prompt that holds what is expected now, with nothing left to decide.
Rule held(const Params& p, const CacheShape& shape) {
  Rule r = rule(p, shape, {});
  r.layer_budget = [](const Place&, std::int64_t rows) { return rows; };
  return r;
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Ledger ledger = eviction::ledger_formula(held(p, shape), shape, {.prompt = Tokens(expected_rows(p, h.tokens().value)), .sequences = h.sequences}, counts);
  ledger.set_prefill(eviction::ledger_formula(rule(p, shape, {}), shape, h, {}).prefill());
  return ledger;
}

/// How many of all heads keep every token: what the rows held say, else the share of the parameters.
double full_share(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  std::int64_t heads = 0;
  for (const LayerClass& c : shape.classes)
    if (c.kind == RowKind::kv) heads += std::int64_t{c.count()} * c.kv_heads;
  const std::int64_t tokens = h.tokens().value, streaming = std::min(tokens, p.streaming_rows());
  const std::int64_t kept = counts.get("kept_rows", -1);
  if (kept < 0 || tokens <= streaming) return full_count(p.sparsity, static_cast<double>(heads)) / static_cast<double>(heads);
  const double rows = static_cast<double>(kept) / static_cast<double>(heads * h.sequences);
  return std::clamp((rows - static_cast<double>(streaming)) / static_cast<double>(tokens - streaming), 0.0, 1.0);
}

/// Two calls of attention a layer: all tokens for the full heads, sinks and the window for the others. Which layers hold how many full heads
/// is the gates' secret; here all hold the same number, or one more.
Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Plan plan;
  const double share = full_share(p, shape, h, counts);
  const std::int64_t tokens = h.tokens().value, windowed = std::min(tokens, p.streaming_rows() + 1);
  for (const LayerClass& c : shape.classes) {
    if (add_state_step(plan, c, h)) continue;
    add_head_classes_step(plan, c, shape.dtype, h, std::llround(share * c.kv_heads * c.count()), tokens, windowed);
  }
  return plan;
}

constexpr Need kNeeds[] = {Need::trained_file};

}  // namespace

extern constinit const Method duo_attention{
    .slug = "duo_attention", .name = "DuoAttention", .family = Family::eviction,
    .paper = {.title = "DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads", .url = "https://arxiv.org/abs/2410.10819", .year = 2024},
    .params = specs<Params>, .needs = kNeeds,
    .serving = {.prefix_cache = {Works::partly, "retrieval heads share their rows; of streaming heads the shared prefix keeps its first tokens"},
                .paged_cache = {Works::partly, "needs a page table for each class of heads"},
                .chunked_prefill = {Works::yes, "the classes do not depend on the text; rows are held until the prompt ends"},
                .cuda_graphs = {Works::yes, "two calls of attention, one of constant length"},
                .tensor_parallelism = {Works::partly, "ranks must hold equal numbers of retrieval heads"},
                .speculation = {Works::no, "a rejected token has pushed an old one out of the window"},
                .multi_turn = {Works::yes, "what leaves does not depend on any question"}},
    .data_dependent = true, .exact_when = "sparsity=0",
    .notes = "The trained file holds layer<l>.gates [kv_heads]; those of six models are published. The released threshold is the quantile of all gates, "
             "so sparsity=1 keeps no retrieval head. Bytes and plans without counts take the share of streaming heads as stated. A prompt's saving in time is not "
             "modelled. The training of gates and kvpress' estimate without training are not offered.",
    .why_not = Faces<rule>::why_not, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = Faces<rule>::prefill_plan, .open = open_trained<rule>,
};

}  // namespace kvatlas::methods

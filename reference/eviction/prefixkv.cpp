// prefixkv: all layers keep the same part of their attention, not the same number of tokens; a fixed share of all tokens leaves.
// Source    sheet prefixkv; Wang et al. 2024, arXiv 2412.03409; official code prefixkv.py (PrefixKV, obtain_cdf_num)
// Keeps     1 - ratio of a prompt on average over the layers, one choice a layer for all heads; of generated tokens each layer keeps the
//           part that it kept of its prompt; keys after RoPE at true positions; three numbers of 4 bytes a layer
// Deviates  without a file of shares the prompt itself is the profile (released: shares of a few samples, averaged); weights are summed
//           in fixed point; the bisection ends after 64 rounds; rows among the sinks never leave (released: where the slot of later
//           evictions lies there, they do)
#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "core/errors.hpp"
#include "reference/eviction/prefixkv/profile.hpp"
#include "reference/method.hpp"
#include "reference/primitives/eviction/serving.hpp"
#include "reference/primitives/eviction/trained.hpp"
#include "reference/primitives/prompt_share.hpp"

namespace kvatlas::methods {
namespace {

struct Params {
  double ratio = 0.5;
  Tokens sinks = 1_tok;
  int distance = -25;
  static constexpr auto fields() {
    return std::tuple{field(&Params::ratio, "ratio", "", 0, 0.9, "share of all layers' tokens that leaves; with a file of shares only for predictions"),
                      field(&Params::sinks, "sinks", "token", 0, 64, "first tokens, never evicted"),
                      field(&Params::distance, "distance", "slot", -1024, 1024,
                            "slot from which generated tokens push rows out: below 0 from the end of the prompt's rows, above 0 from their start")};
  }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.distance == 0) return "distance is 0, must be below 0 (from the end) or above 0 (from the start)";
  return why_not_rows(shape);
}

/// Every layer loses the mean.
ExpectedShare expected(const Params& p, const History& h) {
  const std::int64_t prompt = h.prompt.value, most = std::max<std::int64_t>(0, prompt - 1 - p.sinks.value);
  const std::int64_t leave = std::min(most, static_cast<std::int64_t>(static_cast<double>(prompt) * p.ratio));
  return {.kept = prompt - leave, .share = prompt > 0 ? static_cast<double>(leave) / static_cast<double>(prompt) : 0.0};
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  return share_ledger(shape, h, expected(p, h), counts);
}
Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  return share_decode_plan(shape, h, expected(p, h), p.distance, counts);
}
Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  return share_prefill_plan(shape, h, expected(p, h), 0);
}
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  return share_released_plan(shape, h, expected(p, h), counts);
}

/// Shares of the layers from a file, in the order of the model; none without one.
std::map<int, double> shares_of(const CacheShape& shape, const OpenInputs& in) {
  std::map<int, double> shares;
  for (const auto& [layer, t] : eviction::trained_by_layer(in, shape, "removed_share", [](const LayerClass&) { return std::vector<std::int64_t>{1}; })) {
    const float share = t.values.front();
    if (!(share >= 0 && share < 1)) throw InvalidArgument(cat("layer", layer, ".removed_share is ", share, ", must be at least 0 and below 1"));
    shares[layer] = static_cast<double>(share);
  }
  return shares;
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs& in) {
  PromptShare rule{.sinks = p.sinks, .content_counts = true, .distance = p.distance};
  const std::map<int, double> shares = shares_of(shape, in);
  if (shares.empty()) {
    rule.leave = [p](const std::vector<SlotMasses>& layers) {
      std::vector<std::vector<double>> scores;
      for (const SlotMasses& mass : layers) scores.emplace_back(mass.begin(), mass.end());
      return prefixkv_parts::leave_of_share(std::move(scores), p.ratio, p.sinks.value + 1);
    };
    rule.share = [](int, std::int64_t prompt, std::int64_t kept) { return prompt > 0 ? static_cast<double>(prompt - kept) / static_cast<double>(prompt) : 0.0; };
  } else {
    rule.leave = [shares](const std::vector<SlotMasses>& layers) {
      std::vector<std::int64_t> leave;
      for (const auto& [layer, share] : shares) leave.push_back(static_cast<std::int64_t>(std::nearbyint(share * static_cast<double>(layers.front().size()))));
      return leave;
    };
    rule.share = [shares](int layer, std::int64_t, std::int64_t) { return shares.at(layer); };
  }
  return open_prompt_share(std::move(rule), shape);
}

constexpr Need kNeeds[] = {Need::attention_weights, Need::calibration};

}  // namespace

extern constinit const Method prefixkv{
    .slug = "prefixkv", .name = "PrefixKV", .family = Family::eviction,
    .paper = {.title = "PrefixKV: Adaptive Prefix KV Cache is What Vision Instruction-Following Models Need for Efficient Generation",
              .url = "https://arxiv.org/abs/2412.03409", .year = 2024},
    .params = specs<Params>, .needs = kNeeds,
    .serving = {.prefix_cache = {Works::no, "the choice depends on the whole prompt, and dropped rows are gone"},
                .paged_cache = {Works::partly, "layers hold different numbers of pages, and most steps move the rows behind one slot"},
                .chunked_prefill = {Works::yes, "sums of integers; the choice comes when the prompt is complete, all of its rows are held until then"},
                .cuda_graphs = {Works::partly, "layers grow in different steps; lengths are read from memory"},
                .tensor_parallelism = {Works::partly, "all heads of a layer share one choice: a row of sums is added over the ranks"},
                .speculation = {Works::no, "a rejected token has pushed an old one out"},
                .multi_turn = {Works::partly, "what the first question did not need is gone for the second"}},
    .data_dependent = true, .exact_when = "ratio=0",
    .notes = "Shares of layers come from a trained file (tensors layer<l>.removed_share [1]), as the released code has them for LLaVA; without one the "
             "profile is made of the prompt at hand. Later rows leave at a fixed slot: the newest 25 rows of the prompt, then generated ones. A step of several tokens "
             "drops what single steps would. Released plan: whole layers are copied whenever a row leaves.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>, .prefill_plan = typed<prefill_plan>,
    .released_decode_plan = typed<released_decode_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods

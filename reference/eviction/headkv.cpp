// headkv: every head has its own budget, from a table that says how much it retrieves; SnapKV's choice within it.
// Source    sheet 3.4 (HeadKV); Fu et al. 2024; KVCache-Factory headkv
// Keeps     of each head as many tokens of the prompt as the table says, the observation window, and every generated token; keys after
//           RoPE at true positions; running sums of the heads' lengths
// Deviates  nowhere; without a table all heads are alike
#include <algorithm>
#include <cmath>
#include <map>

#include "core/errors.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"
#include "reference/primitives/eviction/trained.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params : WindowParams {
  Tokens budget = 1024_tok;
  constexpr Params() { window_reduce = WindowReduce::mean; }
  static constexpr auto fields() {
    return std::tuple_cat(std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20,
                                           "a prompt up to here stays whole; mean tokens a head, window included, where there is no table")},
                          window_fields());
  }
};

/// Mean over groups of query heads, halves to even, as released.
Counts per_owner(std::span<const float> capacity, int group) {
  Counts counts;
  for (std::size_t first = 0; first < capacity.size(); first += static_cast<std::size_t>(group)) {
    double sum = 0;
    for (const float x : capacity.subspan(first, static_cast<std::size_t>(group))) {
      if (x < 0) throw InvalidArgument(cat("head_budgets holds ", x, ", must be at least 0"));
      sum += static_cast<double>(x);
    }
    counts.push_back(static_cast<std::int64_t>(std::nearbyint(sum / group)));
  }
  return counts;
}

Rule rule(const Params& p, const CacheShape& shape, const OpenInputs& in) {
  Rule r{.name = "headkv", .refusal = p.refusal(p.budget), .scorer = window_attention(p.observation_window, p.reduce()), .budget = p.budget};
  r.granularity = p.granularity;
  r.ragged = r.content_counts = true;
  std::map<int, Counts> table;
  for (const auto& [layer, capacity] : trained_by_layer(in, shape, "head_budgets", [](const LayerClass& c) { return std::vector<std::int64_t>{c.q_heads}; }))
    table[layer] = per_owner(capacity.values, p.granularity == Granularity::kv_head ? shape.class_of(layer).q_per_kv() : 1);
  r.share = [table](const Place& place, const auto& candidates, std::int64_t k) {
    const auto found = table.find(place.layer);
    Counts counts = found == table.end() ? Counts(candidates.size(), k) : found->second;
    for (std::int64_t& n : counts) n = std::min(n, static_cast<std::int64_t>(candidates.front().size()));
    return counts;
  };
  return r;
}

constexpr Need kNeeds[] = {Need::calibration};

}  // namespace

extern constinit const Method headkv{
    .slug = "headkv", .name = "HeadKV", .family = Family::eviction,
    .paper = {.title = "Not All Heads Matter: A Head-Level KV Cache Compression Method with Integrated Retrieval and Reasoning",
              .url = "https://arxiv.org/abs/2410.19258", .year = 2024},
    .params = specs<Params>, .needs = kNeeds, .serving = kServingRagged, .data_dependent = true, .exact_when = "budget=1M",
    .notes = "The table comes from a trained file (tensors layer<l>.head_budgets [q_heads], tokens beside the window); a kv head takes the mean of "
             "its query heads, halves to even. Without a file every head keeps budget tokens, and the choice is snapkv's in head-ragged storage.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

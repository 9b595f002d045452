// scissorhands: when the cache overflows, tokens leave that most of the last queries gave less than an even share of attention.
// Source    Liu et al. 2023, arXiv 2305.17118, algorithms 1 and 2 (constants r = 10, w = 400); no official code: a reconstruction, checked
//           against two third-party ports
// Keeps     between budget - drop + 1 and budget tokens a kv head, the newest recent_window among them; keys after RoPE at true
//           positions; one bit a slot, query head and query of the history
// Deviates  one budget for all layers: the paper's rule for them is not known; bits are summed over the query heads of a group; a long
//           prompt is cut to budget - drop + 1 at once
#include <algorithm>
#include <bit>

#include "core/errors.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/per_head.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens drop = 512_tok;
  Tokens history = 400_tok;
  Tokens recent_window = 10_tok;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "most tokens kept after a step"),
                      field(&Params::drop, "drop", "token", 1, 1 << 20, "tokens that leave together when one is too many"),
                      field(&Params::history, "history", "token", 1, 4096, "newest queries that are remembered"),
                      field(&Params::recent_window, "recent_window", "token", 0, 1 << 20, "newest tokens, never evicted")};
  }
};

/// Bit of one query head and query in a slot's record: a ring over the positions of queries.
struct Bit {
  std::size_t byte;
  std::byte mask;
  Bit(std::int64_t history, std::int64_t head_in_group, std::int64_t position) {
    const std::int64_t at = head_in_group * history + position % history;
    byte = static_cast<std::size_t>(at / 8);
    mask = static_cast<std::byte>(1U << (at % 8));
  }
};

void remember(std::int64_t history, const Seen& seen) {
  const Bit bit(history, seen.head_in_group, seen.position);
  const float even = 1.0F / static_cast<float>(seen.weights.size());
  for (std::size_t t = 0; t < seen.weights.size(); ++t) {
    std::byte& b = seen.rows.words(0).slots().at(seen.head, seen.first_slot + static_cast<std::int64_t>(t))[bit.byte];
    b = seen.weights[t] < even ? b | bit.mask : b & ~bit.mask;
  }
}

/// Minus the number of times that a slot got less than an even share.
std::vector<float> counts_below(const TokenRows& rows, int head) {
  std::vector<float> scores;
  for (std::int64_t s = 0; s < rows.count(head); ++s) {
    int below = 0;
    for (const std::byte b : rows.words(0).slots().at(head, s)) below += std::popcount(static_cast<unsigned>(b));
    scores.push_back(-static_cast<float>(below));
  }
  return scores;
}

/// The best k; of equal scores the newer slot stays.
Slots newest_best(std::span<const float> scores, std::int64_t k) {
  const std::vector<float> reversed(scores.rbegin(), scores.rend());
  Slots slots;
  for (const std::int64_t s : top_k(reversed, k)) slots.push_back(static_cast<std::int64_t>(scores.size()) - 1 - s);
  std::ranges::sort(slots);
  return slots;
}

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "scissorhands", .recent_window = p.recent_window, .budget = p.budget, .trigger = Trigger::overflow, .room = p.drop - 1_tok};
  r.words = {{.component = "history", .bytes = 0, .bits_per_query_head = static_cast<int>(p.history.value)}};
  r.observe = [history = p.history.value](const Seen& seen) { remember(history, seen); };
  r.scorer.score = [](const Scene& scene) { return of_heads(scene, [&](int h) { return counts_below(scene.rows, h); }); };
  r.select = newest_best;
  return r;
}

constexpr Need kNeeds[] = {Need::attention_weights};

}  // namespace

extern constinit const Method scissorhands{
    .slug = "scissorhands", .name = "Scissorhands", .family = Family::eviction,
    .paper = {.title = "Scissorhands: Exploiting the Persistence of Importance Hypothesis for LLM KV Cache Compression at Test Time",
              .url = "https://arxiv.org/abs/2305.17118", .year = 2023},
    .params = specs<Params>, .needs = kNeeds,
    .serving = {.prefix_cache = kServingStep.prefix_cache,
                .paged_cache = {Works::yes, "many tokens leave together, and what stays is packed"},
                .chunked_prefill = kServingStep.chunked_prefill,
                .cuda_graphs = {Works::partly, "lengths run between two bounds; an eviction is a graph of its own"},
                .tensor_parallelism = kServingStep.tensor_parallelism,
                .speculation = kServingStep.speculation,
                .multi_turn = kServingStep.multi_turn},
    .exact_when = "budget=1M",
    .notes = "No official code: a reconstruction. Half of the budget leaving at once, one budget for all layers, the sum of bits over a group and that of equal slots the "
             "older one leaves are our reading. An even share is one over the entries that the query saw; a query that sees one entry gives it its share. "
             "The history starts empty for a new token, so it cannot lose before others have.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

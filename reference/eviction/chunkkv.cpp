// chunkkv: whole chunks of neighbouring tokens stay or leave, by the mean score of their tokens over all heads of a layer.
// Source    sheet part 3 (chunkkv); Liu et al. 2025; kvpress chunkkv_press.py
// Keeps     as many chunks as the budget's share of the prompt has, the same tokens in every head, and every generated token; keys
//           after RoPE at true positions
// Deviates  nowhere
#include <algorithm>

#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/row_scorers.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params : WindowParams {  // window, kernel and pooling: defaults of kvpress
  Tokens budget = 1024_tok;
  Tokens chunk = 20_tok;
  BaseScore score = BaseScore::snapkv;
  constexpr Params() { observation_window = 64_tok, kernel = 5, pooling = Pooling::avg, window_reduce = WindowReduce::mean; }
  static constexpr auto fields() {
    return std::tuple_cat(std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept; chunks are its share, rounded down"),
                                     field(&Params::chunk, "chunk", "token", 1, 4096, "tokens that stay or leave together"),
                                     choice(&Params::score, "score", kBaseNames, "what ranks the tokens of a head")},
                          window_fields());
  }
  /// Chunks that stay of a prompt of `rows`; the last, shorter one counts as one.
  std::int64_t chunks(std::int64_t rows) const { return std::max<std::int64_t>(1, ceil_div(rows, chunk.value) * budget.value / rows); }
};

/// Every token scores as its chunk: mean over tokens of the sum over heads, float64, tokens then heads ascending.
Scores chunk_scores(const Params& p, const Scene& scene, Scores scores) {
  scores = with_forced_tail(scene, std::move(scores));
  const std::size_t n = scores.front().size(), length = static_cast<std::size_t>(p.chunk.value);
  if (n < length) return scores;
  for (std::size_t first = 0; first < n; first += length) {
    const std::size_t end = std::min(n, first + length);
    double sum = 0;
    for (std::size_t t = first; t < end; ++t)
      for (const auto& head : scores) sum += static_cast<double>(head[t]);
    for (std::size_t t = first; t < end; ++t) scores.front()[t] = static_cast<float>(sum / static_cast<double>(end - first));
  }
  return Scores(scores.size(), scores.front());
}

Slots whole_chunks(const Params& p, std::span<const float> candidates, std::int64_t k) {
  const std::int64_t n = static_cast<std::int64_t>(candidates.size());
  if (n < p.chunk.value) return top_k(candidates, k);
  std::vector<float> of_chunks;
  for (std::int64_t t = 0; t < n; t += p.chunk.value) of_chunks.push_back(candidates[static_cast<std::size_t>(t)]);
  Slots slots;
  for (const std::int64_t c : top_k(of_chunks, p.chunks(n)))
    for (std::int64_t t = c * p.chunk.value; t < std::min(n, (c + 1) * p.chunk.value); ++t) slots.push_back(t);
  return slots;
}

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "chunkkv", .refusal = p.refusal(p.budget), .scorer = scorer_of(p.score, p), .budget = p.budget, .content_counts = true};
  r.granularity = p.granularity;
  r.scorer.unscored = 0_tok;  // the window competes with its forced scores
  r.scorer.score = [p, base = r.scorer.score](const Scene& scene) { return chunk_scores(p, scene, base(scene)); };
  r.select = [p](std::span<const float> candidates, std::int64_t k) { return whole_chunks(p, candidates, k); };
  r.layer_budget = [p](const Place&, std::int64_t rows) {
    if (rows <= p.budget.value) return rows;
    return rows < p.chunk.value ? p.budget.value : std::min(rows, p.chunks(rows) * p.chunk.value);
  };
  return r;
}

}  // namespace

extern constinit const Method chunkkv{
    .slug = "chunkkv", .name = "ChunkKV", .family = Family::eviction,
    .paper = {.title = "ChunkKV: Semantic-Preserving KV Cache Compression for Efficient Long-Context LLM Inference",
              .url = "https://arxiv.org/abs/2502.00299", .year = 2025},
    .params = specs<Params>, .serving = kServingOnce, .data_dependent = true, .exact_when = "budget=1M",
    .notes = "The last chunk may be shorter and competes by its own mean; where it stays, fewer tokens do than predictions say. A prompt "
             "shorter than a chunk is cut token by token. Window tokens have the largest score + 1, as in kvpress.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

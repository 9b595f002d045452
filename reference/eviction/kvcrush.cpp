// kvcrush: pages with the most attention stay, and of the others a few whose binary signatures are unlike each other.
// Source    sheet kvcrush; Jha et al. 2025; OpenVINO GenAI continuous_batching/cache/kvcrush.cpp
// Keeps     sinks, recent tokens and whole pages, at most budget tokens, the same in every head of a layer; keys after RoPE at true
//           positions; a mass of 8 bytes a slot and head until the prompt ends
// Deviates  chosen once, when the prompt ends; representatives are part of the budget; ties go to the lower token or page; random
//           anchors come from Philox
#include <algorithm>

#include "core/arith.hpp"
#include "core/philox.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/observed.hpp"
#include "reference/primitives/eviction/serving.hpp"
#include "reference/primitives/eviction/signatures.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens page = 16_tok;
  int representatives = 8;
  Tokens sinks = 32_tok;
  Tokens recent_window = 128_tok;
  Anchor anchor = Anchor::random;
  bool normalize = true;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens kept, everything included"),
                      field(&Params::page, "page", "token", 1, 1024, "tokens that stay or leave together"),
                      field(&Params::representatives, "representatives", "page", 0, 65536, "pages of the budget that are chosen by signature"),
                      field(&Params::sinks, "sinks", "token", 0, 4096, "first tokens, never evicted"),
                      field(&Params::recent_window, "recent_window", "token", 0, 1 << 20, "newest tokens, never evicted"),
                      choice(&Params::anchor, "anchor", kAnchorNames, "what signatures are compared with"),
                      flag(&Params::normalize, "normalize", "attention is divided by the number of queries that could see the token")};
  }
};

/// Tokens between the sinks and the recent ones, in whole pages; what does not fill a page stays.
struct Middle {
  std::int64_t pages = 0, rest = 0, kept_pages = 0;
  bool all() const { return kept_pages >= pages; }
};
Middle middle_of(const Params& p, std::int64_t rows) {
  const std::int64_t tokens = std::max<std::int64_t>(0, rows - p.sinks.value - p.recent_window.value);
  Middle m{.pages = tokens / p.page.value, .rest = tokens % p.page.value};
  m.kept_pages = (p.budget.value - p.sinks.value - p.recent_window.value - m.rest) / p.page.value;
  return m;
}

/// Attention that each token of the layer received, all heads together.
std::vector<float> importance(const Params& p, const Scene& scene) {
  std::vector<std::uint64_t> mass(static_cast<std::size_t>(scene.rows.count(0)), 0);
  for (int h = 0; h < scene.rows.heads(); ++h) {
    const auto head = scene.rows.words(0).all(h);
    for (std::size_t t = 0; t < mass.size(); ++t) mass[t] += head[t];
  }
  std::vector<float> scores;
  for (std::size_t t = 0; t < mass.size(); ++t) scores.push_back(num::from_mass(mass[t]) / (p.normalize ? static_cast<float>(mass.size() - t) : 1.0F));
  return scores;
}

Scores chosen(const Params& p, std::uint64_t seed, const Scene& scene) {
  const Middle m = middle_of(p, scene.rows.count(0));
  std::vector<float> scores = importance(p, scene);
  const auto page = static_cast<std::size_t>(p.page.value), first = static_cast<std::size_t>(p.sinks.value);
  const auto pages = static_cast<std::size_t>(m.pages);
  const std::span<const float> middle = std::span<const float>(scores).subspan(first, pages * page);
  std::vector<float> sums;
  for (std::size_t i = 0; i < pages; ++i) {
    double sum = 0;  // tokens in ascending order
    for (const float s : middle.subspan(i * page, page)) sum += static_cast<double>(s);
    sums.push_back(static_cast<float>(sum));
  }
  const Signature bits = better_half(middle);
  const RandomStream stream{.seed = seed, .layer = static_cast<std::uint32_t>(scene.place.layer)};
  const Signature anchor = anchor_of(p.anchor, bits, p.page.value, [&](std::int64_t i) { return random_word(stream, static_cast<std::uint64_t>(i)); });
  std::vector<std::uint8_t> stays(pages, 0);
  for (const std::int64_t i : top_k(sums, m.kept_pages - p.representatives)) stays[static_cast<std::size_t>(i)] = 1;
  std::vector<std::int64_t> evicted;
  for (std::size_t i = 0; i < pages; ++i)
    if (stays[i] == 0) evicted.push_back(static_cast<std::int64_t>(i));
  for (const std::int64_t i : representatives(std::move(evicted), distances_to(anchor, bits), p.representatives)) stays[static_cast<std::size_t>(i)] = 1;
  for (std::size_t t = 0; t < scores.size(); ++t) scores[t] = t < first || t >= first + pages * page || stays[(t - first) / page] != 0 ? 1.0F : 0.0F;
  return Scores(static_cast<std::size_t>(scene.rows.heads()), scores);
}

Rule rule(const Params& p, const CacheShape&, const OpenInputs& in) {
  Rule r{.name = "kvcrush", .scorer = mean_observed(), .sinks = p.sinks, .recent_window = p.recent_window, .budget = p.budget};
  r.scorer.score = [p, seed = in.seed](const Scene& scene) { return chosen(p, seed, scene); };
  observe_mass(r);
  const std::int64_t least = p.sinks.value + p.recent_window.value + (p.representatives + 1) * p.page.value;
  if (p.budget.value < least)
    r.refusal = cat("budget is ", p.budget.value, ", must be at least sinks, recent_window and one page more than representatives (", least, ")");
  r.layer_budget = [p](const Place&, std::int64_t rows) {
    const Middle m = middle_of(p, rows);
    return m.all() ? rows : p.sinks.value + p.recent_window.value + m.rest + m.kept_pages * p.page.value;
  };
  return r;
}

constexpr Need kNeeds[] = {Need::attention_weights};

}  // namespace

extern constinit const Method kvcrush{
    .slug = "kvcrush", .name = "KVCrush", .family = Family::eviction,
    .paper = {.title = "KVCrush: Key value cache size-reduction using similarity in head-behaviour", .url = "https://arxiv.org/abs/2503.00022", .year = 2025},
    .params = specs<Params>, .needs = kNeeds,
    .serving = {.prefix_cache = kServingOnce.prefix_cache,
                .paged_cache = {Works::yes, "whole pages leave, the same ones for every head of a layer"},
                .chunked_prefill = kServingOnce.chunked_prefill,
                .cuda_graphs = kServingOnce.cuda_graphs,
                .tensor_parallelism = {Works::partly, "attention is summed over all heads of a layer: a small all-reduce a layer"},
                .speculation = kServingOnce.speculation,
                .multi_turn = kServingOnce.multi_turn},
    .exact_when = "budget=1M",
    .notes = "A signature has a bit for each token of a page, as released; the paper's has one for each head. Tokens that do not fill a "
             "page stay. Eight representatives are assumed (OpenVINO: none unless told). OpenVINO adds the representatives to its cache size and also runs while tokens are generated.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

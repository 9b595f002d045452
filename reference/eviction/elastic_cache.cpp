// elastic_cache: of a prompt the tokens with the most attention are anchors; every other token is averaged into the nearest of them.
// Source    sheet elastic_cache; Liu et al. 2024, arXiv 2407.18121 (ECCV 2024); official code kv_cache.py (ElasticCache)
// Keeps     1 - ratio of all tokens, of every layer its own, one choice for all heads; keys after RoPE at true positions, means of several
//           where tokens were merged; three numbers of 4 bytes a layer
// Deviates  weights are summed in fixed point; equally near anchors: the lower; rows among the sinks never leave; a slot of later evictions
//           that lies before the first row is the middle one
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numeric>

#include "reference/method.hpp"
#include "reference/primitives/eviction/serving.hpp"
#include "reference/primitives/prompt_share.hpp"

namespace kvatlas::methods {
namespace {

enum class Selection : std::uint8_t { ranks, released };
constexpr std::array<std::string_view, 2> kSelectionNames{"ranks", "released"};

struct Params {
  double ratio = 0.2;
  Tokens sinks = 1_tok;
  int distance = -25;
  Selection selection = Selection::ranks;
  static constexpr auto fields() {
    return std::tuple{field(&Params::ratio, "ratio", "", 0, 0.9, "share of all tokens that leaves"),
                      field(&Params::sinks, "sinks", "token", 0, 64, "first tokens, never evicted and no anchors"),
                      field(&Params::distance, "distance", "slot", -1024, 1024,
                            "slot from which generated tokens push rows out: below 0 from the end of the prompt's rows, above 0 from their start"),
                      choice(&Params::selection, "selection", kSelectionNames, "the best by score, or by the defect of the released code")};
  }
  std::int64_t leave(std::int64_t prompt) const {
    const auto n = static_cast<double>(prompt);
    const auto share = static_cast<std::int64_t>(n - n * (1 - ratio));
    return share + (selection == Selection::released && share > 1 ? 1 : 0);
  }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.distance == 0) return "distance is 0, must be below 0 (from the end) or above 0 (from the start)";
  return why_not_rows(shape);
}

ExpectedShare expected(const Params& p, const History& h) {
  const std::int64_t prompt = h.prompt.value, most = std::max<std::int64_t>(0, prompt - 1 - p.sinks.value);
  return {.kept = prompt - std::min(most, p.leave(prompt)), .share = p.ratio};
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  return share_ledger(shape, h, expected(p, h), {});
}
Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  return share_decode_plan(shape, h, expected(p, h), p.distance, {});
}
Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  const ExpectedShare e = expected(p, h);
  return share_prefill_plan(shape, h, e, h.prompt.value - e.kept);
}
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  return share_released_plan(shape, h, expected(p, h), {});
}

/// The released test: entry i of the ascending order names a slot, and i stays when that number is above `leave` - 1.
Slots released_choice(std::span<const std::uint64_t> masses, std::int64_t leave) {
  Slots order(masses.size()), stay;
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::ranges::stable_sort(order, {}, [&](std::int64_t s) { return masses[static_cast<std::size_t>(s)]; });
  for (std::size_t i = 0; i < order.size(); ++i)
    if (order[i] >= leave) stay.push_back(static_cast<std::int64_t>(i));
  return stay;
}

/// Means of the rows at `slots`, float64 in the order given; rounded to float32, then by the store.
std::vector<float> mean_of(const Array& rows, const Slots& slots) {
  std::vector<float> mean;
  for (std::int64_t i = 0; i < rows.dims()[1]; ++i) {
    double sum = 0;
    for (const std::int64_t s : slots) sum += static_cast<double>(rows.view()(s, i));
    mean.push_back(static_cast<float>(sum / static_cast<double>(slots.size())));
  }
  return mean;
}

/// Every candidate that leaves is averaged into the nearest anchor; the anchor's own row comes first, then the others ascending.
void merge_into_anchors(const Params& p, TokenRows& rows, int head, const Slots& kept) {
  const std::int64_t first = p.sinks.value, last = rows.count(head) - 1;
  const Slots anchors(kept.begin() + first, kept.end() - 1);
  if (anchors.empty()) return;
  // The released code forgets that its candidates start behind the sinks: tokens so many slots earlier are merged.
  const std::int64_t shift = p.selection == Selection::released ? p.sinks.value : 0;
  std::map<std::int64_t, Slots> groups;
  for (std::int64_t slot = first; slot < last; ++slot) {
    if (std::ranges::binary_search(anchors, slot)) continue;
    const std::int64_t source = slot - shift;
    auto near = std::ranges::lower_bound(anchors, source);  // first anchor at or behind it
    if (near == anchors.end() || (near != anchors.begin() && source - near[-1] <= *near - source)) --near;
    Slots& group = groups.try_emplace(*near, Slots{*near}).first->second;
    group.push_back(source);
  }
  const Array keys = rows.keys(head), values = rows.values(head);
  for (const auto& [anchor, group] : groups) {
    rows.set_key(head, anchor, mean_of(keys, group));
    rows.set_value(head, anchor, mean_of(values, group));
  }
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs&) {
  PromptShare rule{.sinks = p.sinks, .distance = p.distance};
  if (p.selection == Selection::released) {
    rule.stay = [](std::span<const std::uint64_t> candidates, std::int64_t leave) {
      return leave > 1 ? released_choice(candidates, leave) : top_k(candidates, static_cast<std::int64_t>(candidates.size()) - leave);
    };
    if (p.distance < 0) ++rule.distance;  // counted from what the code means to keep, one row more
  }
  rule.leave = [p](const std::vector<SlotMasses>& layers) {
    return std::vector<std::int64_t>(layers.size(), p.leave(static_cast<std::int64_t>(layers.front().size())));
  };
  rule.share = [ratio = p.ratio](int, std::int64_t, std::int64_t) { return ratio; };
  rule.fate = [p](TokenRows& rows, int head, const Slots& kept) { merge_into_anchors(p, rows, head, kept); };
  return open_prompt_share(std::move(rule), shape);
}

constexpr Need kNeeds[] = {Need::attention_weights};
constexpr Compat kCompat[] = {
    {"selection=released", "slot numbers in sorted order are compared as if they were ranks, one row less is kept, and tokens `sinks` slots before those that leave are merged"}};

}  // namespace

extern constinit const Method elastic_cache{
    .slug = "elastic_cache", .name = "Elastic Cache", .family = Family::eviction,
    .paper = {.title = "Efficient Inference of Vision Instruction-Following Models with Elastic Cache", .url = "https://arxiv.org/abs/2407.18121", .year = 2024},
    .params = specs<Params>, .needs = kNeeds, .compat = kCompat,
    .serving = {.prefix_cache = {Works::no, "the choice depends on the whole prompt, and rows are averaged"},
                .paged_cache = {Works::partly, "most steps move the rows behind one slot"},
                .chunked_prefill = {Works::yes, "sums of integers; the choice comes when the prompt is complete, all of its rows are held until then"},
                .cuda_graphs = {Works::yes, "one length for all layers; a row leaves by a rule that the host knows"},
                .tensor_parallelism = {Works::partly, "all heads of a layer share one choice: a row of sums is added over the ranks"},
                .speculation = {Works::no, "a rejected token has pushed an old one out"},
                .multi_turn = {Works::partly, "what the first question did not need is gone for the second, or averaged"}},
    .exact_when = "ratio=0",
    .notes = "Nothing is merged after the prompt: a row leaves from a fixed slot. Averages of rotated keys mix the phases of their positions. With "
             "selection=released a single token that leaves is the one of least attention (released: the first of the text, the last run's slot). The repository's other "
             "policies (a local window, a global H2O) are `streaming_llm` and `h2o` here. Released plan: whole layers are copied whenever a row leaves.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>, .prefill_plan = typed<prefill_plan>,
    .released_decode_plan = typed<released_decode_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods

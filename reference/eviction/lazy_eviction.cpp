// lazy_eviction: tokens that attention comes back to keep their place for as long as they have been silent before; one cut every window.
// Source    sheet lazy_eviction; arXiv 2506.15969 as two public digests have it; no code could be had: a reconstruction
// Keeps     budget tokens a kv head after an event, the newest `window` among them, and up to window - 1 more; keys after RoPE at true
//           positions; 8 bytes a slot: when it was last attended to, and the longest time that it was not
// Deviates  the sum of both terms of the score (the digest says combined); a token that no decode step has attended to is worth nothing
//           once it is older than its own step
#include <algorithm>
#include <array>

#include "core/arith64.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/per_head.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

enum class Combine : std::uint8_t { sum, product };
constexpr std::array<std::string_view, 2> kCombineNames{"sum", "product"};

struct Params {
  Tokens budget = 1024_tok;
  Tokens window = 128_tok;
  double threshold = 0.001;
  Combine combine = Combine::sum;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens kept by an event, the newest ones included"),
                      field(&Params::window, "window", "token", 1, 1 << 16, "generated tokens between two events; newest tokens, never evicted"),
                      field(&Params::threshold, "threshold", "", 0, 1, "a token is attended to when its weight in any head of the group is above this"),
                      choice(&Params::combine, "combine", kCombineNames, "how the two terms of a score become one")};
  }
};

enum Column : std::size_t { kSeen, kInterval };  // kSeen: position + 1 of the last query that attended to the slot

/// Every decode query notes its time beside the slots that it attends to. The first query that sees a slot is the slot's own.
void note(double threshold, const Seen& seen) {
  SlotWords &last = seen.rows.words(kSeen), &interval = seen.rows.words(kInterval);
  const auto now = static_cast<std::uint64_t>(seen.position + 1);
  for (std::size_t t = 0; t < seen.weights.size(); ++t) {
    const std::int64_t slot = seen.first_slot + static_cast<std::int64_t>(t);
    const std::uint64_t before = last.get(seen.head, slot);
    if (before == 0) {
      last.set(seen.head, slot, now);
    } else if (seen.step > 0 && before < now && static_cast<double>(seen.weights[t]) > threshold) {
      interval.set(seen.head, slot, std::max(interval.get(seen.head, slot), now - before));
      last.set(seen.head, slot, now);
    }
  }
}

/// 2 sigma(-x).
double fading(double x) { return 2 / (1 + num::exp(std::min(x, 700.0))); }

/// Is the token still within its interval, and how long is that? Without an interval: 1 in its own step, 0 later.
float worth(Combine combine, std::uint64_t age, std::uint64_t interval) {
  if (interval == 0) return age == 0 && combine == Combine::sum ? 1.0F : 0.0F;
  const double inside = fading(static_cast<double>(age) / static_cast<double>(interval)), length = fading(1 / static_cast<double>(interval));
  return static_cast<float>(combine == Combine::sum ? inside + length : inside * length);
}

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "lazy_eviction", .recent_window = p.window, .budget = p.budget, .trigger = Trigger::interval, .interval = p.window, .spares_prompt = true};
  if (p.budget <= p.window) return r;  // no room for older tokens: a window, without a score
  r.words = {{"last_seen", 4}, {"interval", 4}};
  r.observe = [threshold = p.threshold](const Seen& seen) { note(threshold, seen); };
  r.reads_prompt_weights = false;
  r.scorer.score = [combine = p.combine](const Scene& scene) {
    return of_heads(scene, [&](int h) {
      const std::vector<std::uint64_t> last = scene.rows.words(kSeen).all(h), interval = scene.rows.words(kInterval).all(h);
      const std::uint64_t now = *std::ranges::max_element(last);  // the newest token has seen itself
      std::vector<float> scores;
      for (std::size_t t = 0; t < last.size(); ++t) scores.push_back(worth(combine, now - last[t], interval[t]));
      return scores;
    });
  };
  return r;
}

constexpr Need kNeeds[] = {Need::attention_weights};

}  // namespace

extern constinit const Method lazy_eviction{
    .slug = "lazy_eviction", .name = "LazyEviction", .family = Family::eviction,
    .paper = {.title = "LazyEviction: Lagged KV Eviction with Attention Pattern Observation for Efficient Long Reasoning",
              .url = "https://arxiv.org/abs/2506.15969", .year = 2025},
    .params = specs<Params>, .needs = kNeeds,
    .serving = {.prefix_cache = {Works::partly, "prompts stay whole until the first event; then rows of a shared prefix go"},
                .paged_cache = {Works::yes, "many tokens leave together, and what stays is packed"},
                .chunked_prefill = {Works::yes, "the prompt is not touched, and its queries leave no trace"},
                .cuda_graphs = {Works::partly, "lengths run between two bounds; an event is a graph of its own"},
                .tensor_parallelism = kServingStep.tensor_parallelism,
                .speculation = {Works::no, "a rejected query has changed the times of the tokens that it attended to"},
                .multi_turn = kServingStep.multi_turn},
    .exact_when = "budget=1M",
    .notes = "Reconstructed without code or paper: threshold 0.001, a window of 128 (the digest: 80 % of intervals are below 175 tokens on MATH500) and the maximum over the "
             "heads of a group are assumed. The second term grows with the interval, as its formula says; the digest's words say the opposite. A prompt above the "
             "budget is cut at the first event.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

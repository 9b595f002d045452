// nacl: the prompt's last tokens stand for the task; what they attend to stays, and a share of the rest by lot.
// Source    sheet part 3.4, NACL; Chen et al. 2024
// Keeps     budget tokens a kv head: sinks, proxies, the best by the proxies' attention, some drawn; keys after RoPE at true positions
// Deviates  lots are drawn with Gumbel noise of Philox, keyed by seed, layer, head and slot
#include <algorithm>
#include <cmath>

#include "core/philox.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/pieces.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens sinks = 4_tok;
  Tokens observation_window = 32_tok;
  double random_share = 0.3;
  double temperature = 1.0;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens kept, sinks and proxies included"),
                      field(&Params::sinks, "sinks", "token", 0, 4096, "first tokens, never evicted"),
                      field(&Params::observation_window, "observation_window", "token", 1, 4096, "last prompt tokens, the proxies that score; always kept"),
                      field(&Params::random_share, "random_share", "", 0, 1, "share of the chosen tokens that is drawn by lot"),
                      field(&Params::temperature, "temperature", "", 0.01, 100, "of the odds exp(score / temperature)")};
  }
};

Scores chosen(const Params& p, const Scorer& attention, std::uint64_t seed, const Scene& scene) {
  Scores scores = attention.score(scene);
  const auto first = static_cast<std::size_t>(p.sinks.value);
  const std::int64_t k = p.budget.value - p.sinks.value - p.observation_window.value;
  const auto drawn = static_cast<std::int64_t>(std::trunc(static_cast<double>(k) * p.random_share));
  for (std::size_t h = 0; h < scores.size(); ++h) {
    const RandomStream stream{.seed = seed, .layer = static_cast<std::uint32_t>(scene.place.layer),
                              .head = static_cast<std::uint32_t>(h)};
    const std::vector<float> kept = choose_with_lot(std::span(scores[h]).subspan(first), k, drawn, p.temperature, [&](std::int64_t s) {
      return random_uniform(stream, static_cast<std::uint64_t>(s));
    });
    std::ranges::copy(kept, scores[h].begin() + p.sinks.value);
  }
  return scores;
}

Rule rule(const Params& p, const CacheShape&, const OpenInputs& in) {
  const Scorer attention = window_attention(p.observation_window, {.pooling = Pooling::avg, .kernel = 1});
  Rule r{.name = "nacl", .scorer = attention, .sinks = p.sinks, .budget = p.budget};
  r.scorer.score = [p, attention, seed = in.seed](const Scene& scene) { return chosen(p, attention, seed, scene); };
  return r;
}

}  // namespace

extern constinit const Method nacl{
    .slug = "nacl", .name = "NACL", .family = Family::eviction,
    .paper = {.title = "NACL: A General and Effective KV Cache Eviction Framework for LLMs at Inference Time",
              .url = "https://aclanthology.org/2024.acl-long.428", .year = 2024},
    .params = specs<Params>, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "The number drawn is trunc(random_share * chosen) in float64. The paper's share and temperature were not found: defaults are ours. "
             "The paper evicts layer by layer while the prompt is read; here all layers are cut when it ends.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

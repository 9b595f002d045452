// adakv: the heads of a layer share one budget; a head whose attention is spread keeps more tokens than a focused one.
// Source    sheet adakv; Feng et al. 2024, algorithm 1; official code adaptive_snapkv/snapkv_utils.py; kvpress adakv_press.py
// Keeps     budget tokens of the prompt on average over a layer's heads and every generated token; keys after RoPE at true
//           positions; running sums of the heads' lengths
// Deviates  allocation=exact keeps the layer's total exact and guarantees whole tokens to each head
#include <algorithm>
#include <cmath>

#include "reference/primitives/eviction/allocators.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

enum class Allocation : std::uint8_t { exact, rounded, kvpress };
constexpr std::array<std::string_view, 3> kAllocationNames{"exact", "rounded", "kvpress"};

struct Params : WindowParams {
  Tokens budget = 1024_tok;
  double floor = 0.2;
  Allocation allocation = Allocation::exact;
  bool normalize = false;
  bool pyramid = false;
  int beta = 20;
  int skip_layers = 0;
  BaseScore score = BaseScore::snapkv;
  constexpr Params() { window_reduce = WindowReduce::mean; }
  static constexpr auto fields() {
    return std::tuple_cat(
        std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept on average over a layer's heads"),
                   field(&Params::floor, "floor", "", 0, 1, "share of its mean budget that every head is sure of"),
                   choice(&Params::allocation, "allocation", kAllocationNames, "how shares of heads become whole tokens"),
                   flag(&Params::normalize, "normalize", "heads compete with scores times the share that their best tokens hold"),
                   flag(&Params::pyramid, "pyramid", "the mean budget falls from the first layer to the last one, as in pyramidkv"),
                   field(&Params::beta, "beta", "", 1, 1024, "pyramid: mean budget over that of the last layer"),
                   field(&Params::skip_layers, "skip_layers", "layer", 0, 1024, "first layers whose heads keep equal numbers"),
                   choice(&Params::score, "score", kBaseNames, "what ranks the tokens of a head")},
        window_fields());
  }
};

Counts share(const Params& p, const Place& place, const std::vector<std::span<const float>>& candidates, std::int64_t k) {
  if (place.ordinal < p.skip_layers) return Counts(candidates.size(), k);
  if (p.allocation == Allocation::rounded) return share_rounded(candidates, k, p.floor, p.normalize);
  const std::int64_t window = p.allocation == Allocation::kvpress && p.score == BaseScore::snapkv ? p.observation_window.value : 0;
  const auto sure = static_cast<std::int64_t>(std::trunc(static_cast<double>(k + window) * p.floor));
  return share_best(candidates, k, std::max<std::int64_t>(0, sure - window));
}

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "adakv", .refusal = p.refusal(p.budget), .scorer = scorer_of(p.score, p), .budget = p.budget};
  r.granularity = p.granularity;
  r.ragged = r.content_counts = true;
  r.share = [p](const Place& place, const auto& candidates, std::int64_t k) { return share(p, place, candidates, k); };
  if (p.normalize && p.allocation != Allocation::rounded && !r.refusal)
    r.refusal = "normalize is true, must be false unless allocation=rounded: an exact total compares scores as they are";
  if (p.pyramid)
    r.layer_budget = [pyramid = Pyramid{p.budget, p.observation_window, p.beta, p.allocation == Allocation::rounded ? Schedule::floor : Schedule::exact}](
                         const Place& place, std::int64_t rows) { return pyramid_rows(pyramid, place, rows); };
  return r;
}

constexpr Compat kCompat[] = {
    {"allocation=rounded", "counts are rounded head by head: a layer keeps more or fewer tokens than its budget, 4 instead of 6 at 2 x 3"},
    {"allocation=kvpress,observation_window=64,kernel=5,pool_first=true,pooling=avg",
     "kvpress counts the observation window into what a head is sure of; 64, 5 and avg are its defaults"},
    {"granularity=query_head", "rows and lengths for every query head: up to q_heads / kv_heads times the bytes"}};

}  // namespace

extern constinit const Method adakv{
    .slug = "adakv", .name = "Ada-KV", .family = Family::eviction,
    .paper = {.title = "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
              .url = "https://arxiv.org/abs/2407.11550", .year = 2024},
    .params = specs<Params>, .compat = kCompat, .serving = kServingRagged, .data_dependent = true, .exact_when = "budget=1M",
    .notes = "The released code copies the flat store of a layer at every step to append a row a head; here heads grow in place. "
             "kvpress masks the evicted keys and frees nothing.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

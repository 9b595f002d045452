// decoding: the prompt stays whole; after every `interval` generated tokens the cache is cut to its budget.
// Source    sheet part 3.3, decoding; kvpress decoding_press.py
// Keeps     budget tokens a kv head after each event, up to interval - 1 more between events; keys after RoPE at true positions
// Deviates  the budget is a number of tokens: kvpress searches a ratio whose truncated product is that number
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/pieces.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 2048_tok;
  Tokens interval = 512_tok;
  Tokens recent_window = 0_tok;
  KeyScore score = KeyScore::keydiff;
  bool compress_prompt = false;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens kept by an event"),
                      field(&Params::interval, "interval", "token", 1, 1 << 20, "generated tokens between two events"),
                      field(&Params::recent_window, "recent_window", "token", 0, 1 << 20, "newest tokens, never evicted"),
                      choice(&Params::score, "score", kKeyScoreNames, "what ranks the tokens"),
                      flag(&Params::compress_prompt, "compress_prompt", "an event at the end of the prompt too, as with a press for each phase")};
  }
};

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "decoding", .scorer = scorer_of(p.score), .recent_window = p.recent_window, .budget = p.budget};
  r.trigger = Trigger::interval;
  r.interval = p.interval;
  r.spares_prompt = !p.compress_prompt;
  return r;
}

}  // namespace

extern constinit const Method decoding{
    .slug = "decoding", .name = "Decoding press", .family = Family::eviction,
    .paper = {.title = "kvpress: LLM KV cache compression made easy", .url = "https://github.com/NVIDIA/kvpress", .year = 2024},
    .params = specs<Params>,
    .serving = {.prefix_cache = {Works::partly, "prompts stay whole until the first event; then rows of a shared prefix go"},
                .paged_cache = {Works::yes, "an event frees whole pages at once"},
                .chunked_prefill = {Works::yes, "the prompt is not touched"},
                .cuda_graphs = {Works::yes, "steps are those of an uncompressed cache, but for one in every interval"},
                .tensor_parallelism = kServingStep.tensor_parallelism,
                .speculation = {Works::partly, "between two events; an event cannot be taken back"},
                .multi_turn = kServingStep.multi_turn},
    .exact_when = "budget=1M",
    .notes = "The count of steps starts with the first generated token. A step of several tokens makes one event at most.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

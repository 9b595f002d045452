// block: a prompt passes in blocks; after each one the best tokens of what was kept so far and of the block stay.
// Source    sheet part 3.3, block; kvpress block_press.py; blockwise prefill of KeyDiff, Park et al. 2025
// Keeps     budget tokens a kv head; keys after RoPE at true positions
// Deviates  all rows are held until the prompt ends, as kvpress does: a score by keys alone does not notice
#include <algorithm>

#include "core/kernels/select.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/pieces.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens block_size = 128_tok;
  KeyScore score = KeyScore::keydiff;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens kept"),
                      field(&Params::block_size, "block_size", "token", 1, 1 << 20, "tokens that join what was kept before the next choice"),
                      choice(&Params::score, "score", kKeyScoreNames, "what ranks the tokens")};
  }
};

/// Each block is scored together with what is held, and one choice follows.
void charge_blocks(const Params& p, const Charge& to) {
  const std::int64_t blocks = std::max<std::int64_t>(1, ceil_div(to.rows.value - p.budget.value, p.block_size.value));
  const Tokens held = std::min(to.rows, p.budget + p.block_size);
  Charge each{to.plan, to.c, to.dtype, to.history, held, to.prompt, to.launches * static_cast<double>(blocks)};
  scorer_of(p.score).charge(each);
  to.plan.add(kernels::TopK{.rows = std::int64_t{to.history.sequences} * to.c.kv_heads, .candidates = held.value, .k = p.budget.value}
                  .call(to.launches * static_cast<double>(blocks - 1)));
}

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "block", .budget = p.budget};
  r.scorer = {.score = [p, base = scorer_of(p.score)](const Scene& scene) {
                return choose_by_blocks(base, scene, p.budget.value, p.block_size.value);
              },
              .charge = [p](const Charge& to) { charge_blocks(p, to); }};
  return r;
}

}  // namespace

extern constinit const Method block{
    .slug = "block", .name = "Block press", .family = Family::eviction,
    .paper = {.title = "kvpress: LLM KV cache compression made easy", .url = "https://github.com/NVIDIA/kvpress", .year = 2024},
    .params = specs<Params>, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "With score=knorm the blocks change nothing: a key's norm does not depend on its company. With score=keydiff a token "
             "that left early can no longer pull the mean key.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

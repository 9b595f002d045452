// cur: tokens stay whose keys and values have large norms among their neighbours: approximate leverage scores.
// Source    sheet cur; Sengupta et al. 2025 (CurDKV); kvpress cur_press.py
// Keeps     budget tokens a kv head, the first `sinks` come first; keys after RoPE at true positions
// Deviates  the random projection is drawn by (seed, layer, head)
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/row_scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

constexpr std::array<std::string_view, 4> kSideNames{"kv_product", "kv_average", "key", "value"};

struct Params {
  Tokens budget = 1024_tok;
  Tokens sinks = 4_tok;
  CurSides sides = CurSides::kv_product;
  Tokens window = 16_tok;
  int projection = 0;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept"),
                      field(&Params::sinks, "sinks", "token", 0, 1 << 20, "first tokens, the last to be evicted"),
                      choice(&Params::sides, "sides", kSideNames, "how norms of keys and values become one score"),
                      field(&Params::window, "window", "token", 0, 1 << 16, "tokens of a block whose norms are compared; 0 = all"),
                      field(&Params::projection, "projection", "", 0, 64, "random directions that rows are projected onto; 0 = none")};
  }
};

Rule rule(const Params& p, const CacheShape&, const OpenInputs& in) {
  return {.name = "cur", .scorer = column_norms({p.sinks, p.sides, p.window.value, p.projection, in.seed}), .budget = p.budget};
}

}  // namespace

extern constinit const Method cur{
    .slug = "cur", .name = "CurDKV", .family = Family::eviction,
    .paper = {.title = "Value-Guided KV Compression for LLMs via Approximated CUR Decomposition", .url = "https://arxiv.org/abs/2509.15038", .year = 2025},
    .params = specs<Params>, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "The last block of a prompt may be shorter; its norms sum to 1 over what it has, as released.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

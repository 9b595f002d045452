// non_causal_attn: what a key receives from all queries of its chunk, later and earlier ones alike, times the norm of its value.
// Source    sheet part 3.1, non_causal_attn; kvpress non_causal_attention_press.py (one half of Compactor)
// Keeps     budget tokens a kv head; keys after RoPE at true positions; all queries of the prompt until it ends
// Deviates  logits are scaled and the last chunk is not filled up; weights are summed in fixed point; no z-score at the end,
//           which is the same rising line for all tokens of a layer and changes no choice
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/eviction/query_scorers.hpp"
#include "reference/primitives/eviction/serving.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;

struct Params {
  Tokens budget = 1024_tok;
  Tokens chunk_size = 256_tok;
  int kernel = 3;
  bool scaled = true;
  bool padded = false;
  static constexpr auto fields() {
    return std::tuple{field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens kept"),
                      field(&Params::chunk_size, "chunk_size", "token", 1, 1 << 16, "tokens that see each other"),
                      field(&Params::kernel, "kernel", "token", 1, 255, "tokens of one pooling window, odd"),
                      flag(&Params::scaled, "scaled", "logits are scaled as in attention"),
                      flag(&Params::padded, "padded", "zero queries and keys fill up the last chunk")};
  }
};

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "non_causal_attn", .scorer = non_causal_attention({.chunk = p.chunk_size.value, .scaled = p.scaled, .padded = p.padded, .kernel = p.kernel}), .budget = p.budget};
  if (p.kernel % 2 == 0) r.refusal = cat("kernel is ", p.kernel, ", must be odd");
  return r;
}

constexpr Compat kCompat[] = {
    {"scaled=false,padded=true", "kvpress leaves out 1/sqrt(head_dim), and a mask of -1e-9 instead of -1e9 lets the padding of the last chunk take and give weight"}};

}  // namespace

extern constinit const Method non_causal_attn{
    .slug = "non_causal_attn", .name = "Non-causal chunk attention", .family = Family::eviction,
    .paper = {.title = "kvpress: LLM KV cache compression made easy", .url = "https://github.com/NVIDIA/kvpress", .year = 2024},
    .params = specs<Params>, .compat = kCompat, .serving = kServingOnce, .exact_when = "budget=1M",
    .notes = "kvpress computes the queries anew from the hidden states when the prompt ends; here they are held until then and counted.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = Faces<rule>::decode_plan,
    .prefill_plan = Faces<rule>::prefill_plan, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

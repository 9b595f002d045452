// freecache: a diffusion model freezes the rows of what is written and computes those of the current block and behind it anew in every step.
// Source    sheet freecache; Hu et al. 2025, arXiv 2505.21467; experimental code flash-dlm-experimental src/model/llada_v2
// Keeps     every token of the text, masked ones included; it saves work, not memory; keys after RoPE at true positions
// Deviates  the experimental code keeps keys before RoPE, and queries beside them, which changes no output; boundaries inside a block
//           (its guided modes) are left to the caller
//
// The first denoising step hands in the whole text as the prompt, in one forward under a bidirectional mask. Every further step of a block
// is crop(start of the block), then a forward of the block and all that lies behind it under a bidirectional mask: their rows are written
// over, those before the block stay as they are. A block that starts later freezes more. Rows are frozen as the last step computed them,
// before its own tokens were unmasked.
#include <algorithm>

#include "reference/method.hpp"
#include "reference/primitives/denoising.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/token_cache.hpp"

namespace kvatlas::methods {
namespace {

struct Params {
  Tokens block = 32_tok;
  Tokens behind = 0_tok;
  static constexpr auto fields() {
    return std::tuple{field(&Params::block, "block", "token", 1, 1 << 20, "tokens that are denoised together"),
                      field(&Params::behind, "behind", "token", 0, 1 << 20, "tokens of the text behind the block, masked ones")};
  }
};

/// Every row stays until it is taken back, inside the prompt as well.
class Cache final : public TokenCache {
 public:
  explicit Cache(const CacheShape& shape) : TokenCache(shape, Granularity::kv_head) {}

 private:
  void step(Layer& l, const PreparedStep& p, const StepInput& in, View<float> out) override {
    l.rows.append(p.k.view(), p.v.view());
    attend(l, p, in, out);
  }
  std::int64_t restorable(const Layer& l) const override { return l.rows.count(0); }
};

std::unique_ptr<KvCache> open(const Params&, const CacheShape& shape, const OpenInputs&) { return std::make_unique<Cache>(shape); }

std::optional<std::string> why_not(const Params&, const CacheShape& shape) { return why_not_rows(shape); }

Ledger ledger_formula(const Params&, const CacheShape& shape, const History& h, const ContentCounts&) { return dense_ledger(shape, h); }

/// One denoising step after the first: the block and what lies behind it, over the whole text.
Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  const Tokens text = std::max(1_tok, h.tokens());
  for (const LayerClass& c : shape.classes)
    if (!add_state_step(plan, c, h)) add_denoising_pass(plan, c, shape.dtype, h, std::min(text, p.block + p.behind).value, text, c.count());
  return plan;
}

/// The first denoising step: all tokens.
Plan prefill_plan(const Params&, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  for (const LayerClass& c : shape.classes)
    if (c.kind == RowKind::kv && h.prompt.value > 0) add_denoising_pass(plan, c, shape.dtype, h, h.prompt.value, h.prompt, c.count());
  return plan;
}

constexpr Serving kServing{
    .prefix_cache = {Works::no, "every token sees the masked tokens behind it: rows of a prefix depend on what follows"},
    .paged_cache = {Works::yes, "rows are written over in place"},
    .chunked_prefill = {Works::no, "in the first step every token sees every other one"},
    .cuda_graphs = {Works::partly, "a step's length shrinks from block to block"},
    .tensor_parallelism = {Works::yes, "kv heads are independent"},
    .speculation = {Works::partly, "guided diffusion lets a small model accept a prefix of the draft; its boundary is one more crop"},
    .multi_turn = {Works::partly, "frozen rows never see what comes later"}};

constexpr Need kNeeds[] = {Need::diffusion_model};

}  // namespace

extern constinit const Method freecache{
    .slug = "freecache", .name = "FreeCache", .family = Family::eviction,
    .paper = {.title = "FlashDLM: Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided Diffusion",
              .url = "https://arxiv.org/abs/2505.21467", .year = 2025},
    .params = specs<Params>, .needs = kNeeds, .serving = kServing, .equivalent_to = "full", .exact_when = "",
    .notes = "For diffusion language models. The rows are those of a full cache; what the method saves are the tokens before the block, which a step does not "
             "compute again. The tokens of a history are the whole text. A plan's step is one denoising step; weight products are those of one token in the "
             "simulator's step. The experimental code holds the queries of all tokens as well: q_heads / kv_heads / 2 times the bytes on top.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>, .prefill_plan = typed<prefill_plan>,
    .open = typed<open>,
};

}  // namespace kvatlas::methods

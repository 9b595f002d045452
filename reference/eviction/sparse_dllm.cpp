// sparse_dllm: while a diffusion model denoises a block, only the tokens that the block looks at stay cached, before and behind it.
// Source    sheet sparse_dllm; Song et al. 2025, arXiv 2508.02558; official code sparse_dllm/{dream/Cache,llada_generate,modeling_llada}.py
// Keeps     trunc((tokens - block) * keep_fraction) tokens outside the block, one choice a layer for all heads; keys after RoPE at true positions
// Deviates  kept tokens stay in the order of the text, of equal scores the lower slot first
//
// One cache serves one block, as the official code builds a new one for each. The first denoising step needs none. In the second the whole
// text, masked tokens included, is handed in as the prompt, in one forward under a bidirectional mask; end_prefill() chooses, and the
// block's own rows leave. Every further step forwards the block's tokens under a bidirectional mask, behind crop(tokens of the text),
// which takes the block's rows of the step before back.
#include "reference/eviction/sparse_dllm/importance.hpp"

#include "core/arith.hpp"
#include "core/kernels/attention.hpp"
#include "core/kernels/select.hpp"
#include "core/kernels/store.hpp"
#include "reference/primitives/eviction/faces.hpp"
#include "reference/primitives/kept_rows.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/method.hpp"

namespace kvatlas::methods {
namespace {

using namespace eviction;
using sparse_dllm_parts::Block;

struct Params {
  double keep_fraction = 0.5;
  Tokens block = 32_tok;
  Tokens behind = 0_tok;
  int kernel = 3;
  static constexpr auto fields() {
    return std::tuple{field(&Params::keep_fraction, "keep_fraction", "", 0, 1, "share of the tokens outside the block that stays"),
                      field(&Params::block, "block", "token", 1, 4096, "tokens that are denoised together"),
                      field(&Params::behind, "behind", "token", 0, 1 << 20, "tokens of the text behind the block, masked ones"),
                      field(&Params::kernel, "kernel", "token", 1, 255, "tokens of one pooling window, odd; 1: no pooling, as for Dream")};
  }
};

Block block_in(const Params& p, std::int64_t tokens) { return sparse_dllm_parts::block_of(tokens, p.block.value, p.behind.value); }

std::int64_t kept_of(const Params& p, std::int64_t tokens) {
  return static_cast<std::int64_t>(static_cast<double>(tokens - block_in(p, tokens).size) * p.keep_fraction);
}

Scores scores_of(const Params& p, const Scene& scene) {
  const std::int64_t rows = scene.rows.count(0);
  const Block block = block_in(p, rows);
  // The held queries are the newest ones: those of the block, then of what lies behind it.
  const std::int64_t first = scene.queries.dim(1) - (rows - block.first);
  const std::vector<float> outside = sparse_dllm_parts::importance(scene.c, scene.queries.slice(1, first, block.size), scene.rows, block, p.kernel);
  std::vector<float> all(outside.begin(), outside.begin() + block.first);
  all.insert(all.end(), static_cast<std::size_t>(block.size), -num::infinity());  // fewer stay than lie outside: never one of these
  all.insert(all.end(), outside.begin() + block.first, outside.end());
  return Scores(static_cast<std::size_t>(scene.rows.heads()), all);
}

Rule rule(const Params& p, const CacheShape&) {
  Rule r{.name = "sparse_dllm", .budget = 1_tok};
  if (p.kernel % 2 == 0) r.refusal = cat("kernel is ", p.kernel, ", must be odd");
  r.scorer.window = p.block + p.behind;
  r.scorer.score = [p](const Scene& scene) { return scores_of(p, scene); };
  r.layer_budget = [p](const Place&, std::int64_t rows) { return kept_of(p, rows); };
  r.any_mask = true;
  return r;
}

/// One denoising step from the third on: the block's tokens attend to what was kept and to themselves.
Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  const std::int64_t block = std::max<std::int64_t>(1, block_in(p, h.prompt.value).size);
  const Tokens seen(kept_of(p, h.prompt.value) + block);
  const CodeFormat plain = CodeFormat::plain(shape.dtype);
  for (const LayerClass& c : shape.classes) {
    if (add_state_step(plan, c, h)) continue;
    plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = shape.dtype,
                             .k_format = plain, .v_format = plain, .rows = block}
                 .call(c.count()));
    plan.add(kernels::DecodeAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim, .v_dim = c.v_dim,
                                      .dtype = shape.dtype, .tokens = seen, .k_format = plain, .v_format = plain, .queries = static_cast<int>(block)}
                 .call(c.count()));
    plan.add(kernels::SpanMerge{.rows = std::int64_t{h.sequences} * c.q_heads * block, .v_dim = c.v_dim, .dtype = shape.dtype, .tokens = seen}.call(c.count()));
  }
  return plan;
}

/// The first two denoising steps: two forwards of the whole text, in which every token sees every other one, and one choice.
Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  const std::int64_t tokens = h.prompt.value, kept = kept_of(p, tokens);
  if (tokens == 0) return plan;
  const double both_ways = 2.0 * static_cast<double>(tokens) / static_cast<double>(tokens + 1);  // pairs over those of the causal half
  const CodeFormat plain = CodeFormat::plain(shape.dtype);
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    plan.add(kernels::PrefillAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim, .v_dim = c.v_dim,
                                       .dtype = shape.dtype, .chunk = h.prompt, .density = both_ways}
                 .call(2.0 * c.count()));
    plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = shape.dtype,
                             .k_format = plain, .v_format = plain, .rows = tokens}
                 .call(c.count()));
    plan.add(kernels::LabelScore{.sequences = h.sequences, .heads = c.kv_heads, .q_per_head = c.q_per_kv(), .channels = c.k_dim,
                                 .label_bits = std::int64_t{8} * c.k_dim * bytes_of(shape.dtype), .tokens = h.prompt}
                 .call(c.count()));
    plan.add(kernels::TopK{.rows = h.sequences, .candidates = tokens - block_in(p, tokens).size, .k = kept}.call(c.count()));
    add_compaction(plan, c, shape.dtype, h, kept, c.count());
  }
  return plan;
}

constexpr Serving kServing{
    .prefix_cache = {Works::no, "every token sees the masked tokens behind it: rows of a prefix depend on what follows"},
    .paged_cache = {Works::yes, "all heads keep the same tokens"},
    .chunked_prefill = {Works::no, "in the full steps every token sees every other one"},
    .cuda_graphs = {Works::yes, "denoising steps of one block have one shape"},
    .tensor_parallelism = {Works::partly, "one choice for all heads: ranks add up their scores"},
    .speculation = {Works::no, "tokens are not generated from left to right"},
    .multi_turn = {Works::no, "the cache lives for one block"}};

constexpr Need kNeeds[] = {Need::diffusion_model};

}  // namespace

extern constinit const Method sparse_dllm{
    .slug = "sparse_dllm", .name = "Sparse-dLLM", .family = Family::eviction,
    .paper = {.title = "Sparse-dLLM: Accelerating Diffusion LLMs with Dynamic Cache Eviction", .url = "https://arxiv.org/abs/2508.02558", .year = 2025},
    .params = specs<Params>, .needs = kNeeds, .serving = kServing,
    .notes = "For diffusion language models. The prompt of a history is the whole text, prompt and masked tokens; what is generated are the block's rows of one "
             "denoising step. A plan's step is one denoising step, which decodes one token with the official settings (256 steps of 256 tokens); the weight "
             "products of a block's other tokens are not in the simulator's step. With keep_fraction=1 a block attends to all rows of the second step. Tokens that "
             "come one by one under a causal mask join the block.",
    .why_not = Faces<rule>::why_not, .ledger_formula = Faces<rule>::ledger_formula, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .open = Faces<rule>::open,
};

}  // namespace kvatlas::methods

// full: every key and value in the cache's dtype. The baseline of every ratio.
// Source    the attention layer itself; decode split as in FlashDecoding (sheet flash_decode)
// Keeps     every token (a sliding-window layer: its window); keys after RoPE
// Deviates  nowhere
#include "core/errors.hpp"
#include "reference/method.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/side_cache.hpp"

namespace kvatlas::methods {
namespace {

struct Params {
  static constexpr auto fields() { return std::tuple{}; }
};

Ledger ledger_formula(const Params&, const CacheShape& shape, const History& h, const ContentCounts&) {
  return dense_ledger(shape, h);
}

Plan decode_plan(const Params&, const CacheShape& shape, const History& h, const ContentCounts&) {
  return dense_decode_plan(shape, h);
}

Plan prefill_plan(const Params&, const CacheShape& shape, const History& h, const ContentCounts&) {
  return dense_prefill_plan(shape, h);
}

std::unique_ptr<SideStore> open_side(const Params&, const LayerClass& c, int, Side side, Dtype dtype) {
  return plain_store(c.kv_heads, side == Side::key ? c.k_dim : c.v_dim, side, dtype);
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs&) {
  return std::make_unique<SideCache>(
      shape, [p, dtype = shape.dtype](const LayerClass& c, int layer, Side side) { return open_side(p, c, layer, side, dtype); });
}

SideLayout side_layout(const Params&, const LayerClass&, Side, Dtype dtype, Tokens) {
  return {.format = CodeFormat::plain(dtype)};
}

constexpr Deployable kDeployable[] = {{"vllm", "0.1", "--kv-cache-dtype auto", "vLLM engine arguments"},
                                      {"sglang", "0.1", "--kv-cache-dtype auto", "SGLang server arguments"},
                                      {"trtllm", "0.5", "kv_cache_config.dtype auto", "TensorRT-LLM documentation"},
                                      {"llama.cpp", "b1", "-ctk f16 -ctv f16", "llama.cpp help"}};

}  // namespace

extern constinit const Method full{
    .slug = "full", .name = "Full cache", .family = Family::baseline,
    .paper = {.title = "Attention Is All You Need", .url = "https://arxiv.org/abs/1706.03762", .year = 2017},
    .params = specs<Params>, .deployable = kDeployable, .exact_when = "",
    .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>, .prefill_plan = typed<prefill_plan>,
    .open = typed<open>, .open_side = typed<open_side>, .side_layout = typed<side_layout>,
};

}  // namespace kvatlas::methods

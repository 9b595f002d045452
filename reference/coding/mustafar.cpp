// mustafar: the smallest magnitudes of every token's keys and values are pruned; bitmaps and the values that stay are packed.
// Source    arXiv 2505.22913; dhjoo98/mustafar models/llama_mustafar_kernel.py (when rows are pruned), kernel/compression.py
//           (bitmaps, order of tiles), kernel/csrc (one attention kernel a query head)
// Formula   of every token's d channels the (1 - sparsity) d largest magnitudes stay, exactly; a bit a channel says which
// Keeps     every token, thinned; keys after RoPE; the newest residual_window to residual_window + flush - 1 tokens plain
// Deviates  one offset list a head without the word that says where its values start; a prompt within the window stays plain
//           (released: raises)
#include <algorithm>

#include "core/errors.hpp"
#include "core/kernels/store.hpp"
#include "reference/coding/mustafar/tiles.hpp"
#include "reference/method.hpp"
#include "reference/primitives/residual_store.hpp"
#include "reference/primitives/side_method.hpp"

namespace kvatlas::methods {
namespace {

using mustafar_tiles::kTile;

struct Params {
  double k_sparsity = 0.7;
  double v_sparsity = 0.7;
  Tokens residual_window{32};
  Tokens flush{256};
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::k_sparsity, "k_sparsity", "", 0, 0.99, "share of a key's channels that is pruned"),
        field(&Params::v_sparsity, "v_sparsity", "", 0, 0.99, "share of a value's channels that is pruned"),
        field(&Params::residual_window, "residual_window", "token", 0, 4096, "newest tokens that stay plain at least"),
        field(&Params::flush, "flush", "token", kTile, 4096, "tokens that are pruned and packed at once, a multiple of 64")};
  }
  double sparsity(Side side) const { return side == Side::key ? k_sparsity : v_sparsity; }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.flush.value % kTile != 0) return cat("flush is ", p.flush.value, ", must be a multiple of ", kTile, ": tiles hold ", kTile, " tokens");
  for (const LayerClass& c : shape.classes)
    if (c.kind == RowKind::kv && (c.k_dim % kTile != 0 || c.v_dim % kTile != 0))
      return cat("head_dim is ", c.k_dim % kTile != 0 ? c.k_dim : c.v_dim, ", must be a multiple of ", kTile, ": tiles hold ", kTile, " channels");
  return why_not_sides("mustafar", shape, kWholeRows);
}

Tokens coded_rows(const Params& p, Tokens rows) {
  const std::int64_t aged = std::max<std::int64_t>(0, (rows - p.residual_window).value);
  return Tokens(aged - aged % p.flush.value);
}

/// Stored values of a tile that has no equal magnitudes: 64 (dim - k + 1) / dim on average, and 3.5 fillers.
double expected_values(double sparsity, int dim) {
  const int kept = dim - mustafar_tiles::pruned_rank(sparsity, dim) + 1;
  return kept >= dim ? kTile : std::min<double>(kTile, static_cast<double>(kTile) * kept / dim + 3.5);
}

SideLayout side_layout(const Params& p, const LayerClass& c, Side side, Dtype dtype, Tokens context) {
  const double bits = 96 + 8 * bytes_of(dtype) * expected_values(p.sparsity(side), dim_of(c, side));  // map, offset, values
  const int whole = static_cast<int>(bits / kTile);
  return {.format = {.kind = CodeKind::table, .bits = whole, .axis = side == Side::key ? GroupAxis::tokens : GroupAxis::channels,
                     .group_size = kTile, .group_bits = static_cast<int>(bits) - whole * kTile},
          .plain = context - coded_rows(p, context), .flush = p.flush};
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  const Tokens coded = coded_rows(p, h.tokens());
  Ledger ledger;
  double expected[2] = {0, 0};
  Bytes lists{0};  // the first offset of every list, which is there before any row is coded
  for_sides(shape, h, [&](const LayerClass& c, Side side, std::int64_t width) {
    const std::int64_t tiles = coded.value * width / kTile, heads = width / dim_of(c, side);
    lists += Bytes(heads * 4);
    ledger.add("bitmaps", side, Scope::token, Bytes(tiles * 8));
    ledger.add("offsets", side, Scope::token, Bytes((tiles + heads) * 4));
    ledger.add("residual", side, Scope::sequence, Bytes((h.tokens() - coded).value * width * bytes_of(shape.dtype)));
    expected[side == Side::key ? 0 : 1] += static_cast<double>(tiles) * expected_values(p.sparsity(side), dim_of(c, side));
  });
  for (const Side side : {Side::key, Side::value}) {
    const bool keys = side == Side::key;
    const std::int64_t values = counts.get(keys ? "k_values" : "v_values", static_cast<std::int64_t>(expected[keys ? 0 : 1]));
    ledger.add("values", side, Scope::token, Bytes(values * bytes_of(shape.dtype)));
  }
  ledger.set_prefill(dense_prompt(shape, h) + lists);
  return ledger;
}

/// One kernel a query head reads its group's tiles anew, and keys are transposed before they are packed.
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  CacheShape repeated = shape;
  for (LayerClass& c : repeated.classes)
    if (c.kind == RowKind::kv) c.kv_heads = c.q_heads;
  Plan plan = side_decode_plan(repeated, h, layout_with<Params, side_layout>(p, shape.dtype));
  for (const LayerClass& c : shape.classes)
    if (c.kind == RowKind::kv && coded_rows(p, h.tokens()).value > 0)
      plan.add(kernels::Copy{.segments = std::int64_t{h.sequences} * c.kv_heads, .bytes = p.flush.value * c.k_dim * bytes_of(shape.dtype)}
                   .call(c.count() / static_cast<double>(p.flush.value)));
  return plan;
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) {
  return std::make_unique<ResidualStore>(
      c.kv_heads, dim_of(c, side), side, dtype,
      std::make_unique<mustafar_tiles::TileCoder>(c.kv_heads, dim_of(c, side), side, dtype, p.sparsity(side)),
      ResidualPolicy{.coded_rows = [p](Tokens rows) { return coded_rows(p, rows); }});
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs&) {
  return std::make_unique<SideCache>(
      shape, [p, dtype = shape.dtype](const LayerClass& c, int layer, Side side) { return open_side(p, c, layer, side, dtype); });
}

}  // namespace

extern constinit const Method mustafar{
    .slug = "mustafar", .name = "Mustafar", .family = Family::coding,
    .paper = {.title = "Mustafar: Promoting Unstructured Sparsity for KV Cache Pruning in LLM Inference",
              .url = "https://arxiv.org/abs/2505.22913", .year = 2025},
    .params = specs<Params>,
    .serving = {.prefix_cache = {Works::partly, "a shared prefix ends at a multiple of flush; its newest tokens must be pruned anew"},
                .paged_cache = {Works::partly, "runs of values differ in length from head to head; plain rows live beside them"},
                .chunked_prefill = {Works::yes, "rows stay plain until the prompt ends, so the peak is the dense cache"},
                .cuda_graphs = {Works::partly, "lengths depend on content; the flush is a second graph"},
                .tensor_parallelism = {Works::yes, "heads are independent"},
                .speculation = {Works::partly, "tokens can be taken back until the next flush"},
                .multi_turn = {Works::yes, ""}},
    .data_dependent = true, .exact_when = "k_sparsity=0,v_sparsity=0",
    .notes = "The default pair of the paper: magnitudes per token for keys and values; the output-aware and per-channel scores of its "
             "ablation are not offered. Of dim channels dim - max(1, int(sparsity dim)) + 1 stay, one more than the sparsity says, and all "
             "that equal the threshold: 40 of 128 at 0.7. Predictions expect 3.5 fillers a tile. Zeros, of either sign, are not stored and "
             "come back as +0; others are stored in the dtype of the cache and come back as they were. The released kernel reads one vector of 16 bytes past every tile.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<side_decode<Params, side_layout>>,
    .prefill_plan = typed<side_prefill<Params, side_layout>>, .released_decode_plan = typed<released_decode_plan>, .open = typed<open>,
    .open_side = typed<open_side>, .side_layout = typed<side_layout>,
};

}  // namespace kvatlas::methods

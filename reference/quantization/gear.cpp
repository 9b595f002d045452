// gear: group codes, a few outliers kept apart, and a low-rank approximation of what the codes miss.
// Source    arXiv 2403.05527; opengear-project/GEAR GEARLM/Simulated/compress_function.py (the three parts),
//           cuda_supported_gear (fused backbone)
// Formula   x = D + L + S: S the sparsity/2 largest and smallest of a vector, D group codes of x - S, L = A B^T of rank `rank`, fitted by power
//           iteration to x - S - D; x' = D + L + S
// Keeps     every token; keys after RoPE; the newest rows, up to buffer - 1, plain
// Deviates  factors and outliers are stored in fp16 (the simulation keeps float32 and never packs); the factor's random start
//           is Philox; a prompt's remainder waits for its buffer (the simulation leaves the tail of a key group plain instead)
#include <algorithm>
#include <array>

#include "core/errors.hpp"
#include "core/kernels/store.hpp"
#include "core/kernels/transform.hpp"
#include "reference/method.hpp"
#include "reference/primitives/residual_store.hpp"
#include "reference/primitives/side_method.hpp"
#include "reference/quantization/gear/coder.hpp"

namespace kvatlas::methods {
namespace {

using gear_parts::Backbone;
constexpr std::array<std::string_view, 2> kBackbones{"kivi", "kcvt"};
enum class Count : std::uint8_t { paper, released };
constexpr std::array<std::string_view, 2> kCounts{"paper", "released"};

struct Params {  // defaults: the 2-bit script of the official code
  int bits = 2;
  Backbone backbone = Backbone::kivi;
  int group_size = 64;
  double sparsity = 0.02;
  int rank = 4;
  int decode_rank = 2;
  int loops = 3;
  Tokens buffer{64};
  Count outlier_count = Count::paper;
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::bits, "bits", "bit", 2, 8, "code width"),
        choice(&Params::backbone, "backbone", kBackbones, "kivi: groups of group_size; kcvt: one group a key channel, one a value row over all heads"),
        field(&Params::group_size, "group_size", "element", 8, 256, "kivi: tokens of a key channel, channels of a value, that share a scale"),
        field(&Params::sparsity, "sparsity", "", 0, 0.5, "share of values that is kept apart, half of it the largest of a vector; 0 is GEAR-L"),
        field(&Params::rank, "rank", "element", 0, 64, "rank of the prompt's error, each head"),
        field(&Params::decode_rank, "decode_rank", "element", 0, 64, "rank of the error of rows that are coded later"),
        field(&Params::loops, "loops", "", 1, 10, "rounds of the power iteration"),
        field(&Params::buffer, "buffer", "token", 8, 1024, "rows that are coded at once after the prompt"),
        choice(&Params::outlier_count, "outlier_count", kCounts, "outliers of a key channel: from the rows coded together, or from the channels of a row")};
  }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.backbone == Backbone::kivi) {
    if (p.buffer.value % p.group_size != 0)
      return cat("buffer is ", p.buffer.value, ", must be a multiple of group_size (", p.group_size, "): a key group is coded whole");
    if (p.group_size * p.bits % 8 != 0) return cat("group_size is ", p.group_size, ", must fill whole bytes at ", p.bits, " bits");
  }
  if (p.buffer.value * p.bits % 8 != 0) return cat("buffer is ", p.buffer.value, ", must fill whole bytes at ", p.bits, " bits");
  for (const LayerClass& c : shape.classes)
    if (c.kind == RowKind::kv && p.backbone == Backbone::kivi && c.v_dim % p.group_size != 0)
      return cat("group_size is ", p.group_size, ", must divide head_dim (", c.v_dim, ")");
  return why_not_sides("gear", shape, kWholeRows);
}

gear_parts::Settings settings(const Params& p, const LayerClass& c, int layer, Side side, std::uint64_t seed) {
  return {.kv_heads = c.kv_heads, .dim = dim_of(c, side), .side = side, .backbone = p.backbone, .bits = p.bits, .group_size = p.group_size,
          .meta = MetaType::f16, .sparsity = p.sparsity,
          .keys_count_channels = p.outlier_count == Count::released, .rank = p.rank, .later_rank = p.decode_rank, .loops = p.loops,
          .buffer = p.buffer, .seed = seed, .layer = layer};
}

Tokens coded_rows(const Params& p, Tokens rows) { return rows - Tokens(rows.value % p.buffer.value); }

/// Bytes of the parts of n rows of one sequence and layer, coded together.
struct Parts {
  std::int64_t codes = 0, scales = 0, outliers = 0, low_rank = 0;
};
Parts parts_of(const Params& p, const LayerClass& c, Side side, std::int64_t n, bool prompt) {
  if (n == 0) return {};
  const gear_parts::Settings s = settings(p, c, 0, side, 0);
  const GroupQuantizer q = gear_parts::quantizer_of(s, n);
  const std::int64_t width = std::int64_t{c.kv_heads} * s.dim, groups = n * width / q.group_size;
  const std::int64_t vectors = side == Side::key ? width : n, rank = gear_parts::rank_of(s, n, prompt);
  return {.codes = groups * q.group_bytes(), .scales = groups * 2,
          .outliers = vectors * 2 * gear_parts::outliers_each_side(s, n) * (2 + gear_parts::index_bytes(s, n)),
          .low_rank = 2 * rank * (n + s.dim) * c.kv_heads};
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  const std::int64_t prompt = coded_rows(p, h.prompt).value, coded = coded_rows(p, h.tokens()).value;
  Ledger ledger;
  for_sides(shape, h, [&](const LayerClass& c, Side side, std::int64_t width) {
    const std::int64_t layers = std::int64_t{c.count()} * h.sequences, later = (coded - prompt) / p.buffer.value;
    const Parts first = parts_of(p, c, side, prompt, true), each = parts_of(p, c, side, p.buffer.value, false);
    ledger.add("codes", side, Scope::token, Bytes(layers * (first.codes + later * each.codes)));
    ledger.add("scales", side, Scope::group, Bytes(layers * (first.scales + later * each.scales)));
    ledger.add("zeros", side, Scope::group, Bytes(layers * (first.scales + later * each.scales)));
    ledger.add("outliers", side, Scope::token, Bytes(layers * (first.outliers + later * each.outliers)));
    ledger.add("low_rank", side, Scope::token, Bytes(layers * (first.low_rank + later * each.low_rank)));
    ledger.add("residual", side, Scope::sequence, Bytes((h.tokens().value - coded) * width * bytes_of(shape.dtype)));
  });
  ledger.set_prefill(dense_prompt(shape, h));
  return ledger;
}

/// What one row of a head weighs beside its codes, outliers and factors spread over the rows.
SideLayout side_layout(const Params& p, const LayerClass& c, Side side, Dtype, Tokens context) {
  const std::int64_t coded = coded_rows(p, context).value;
  const Parts parts = parts_of(p, c, side, coded, true);
  const std::int64_t rows = std::max<std::int64_t>(1, coded * c.kv_heads);
  return {.format = {.kind = CodeKind::integer, .bits = p.bits, .axis = side == Side::key ? GroupAxis::tokens : GroupAxis::channels,
                     .group_size = dim_of(c, side),
                     .group_bits = static_cast<int>(8 * (2 * parts.scales + parts.outliers + parts.low_rank) / rows)},
          .plain = context - Tokens(coded), .flush = p.buffer};
}

/// Query times factor and its product with the other one, both sides; the factors themselves are read with the codes.
void add_low_rank(Plan& plan, const Params& p, const CacheShape& shape, const History& h) {
  const Tokens coded = coded_rows(p, h.tokens());
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv || p.rank == 0 || coded.value == 0) continue;
    for (const Side side : {Side::key, Side::value})
      plan.add(kernels::LowRank{.sequences = std::int64_t{h.sequences} * c.q_heads, .rows = 1, .rank = p.rank,
                                .dim = dim_of(c, side) + coded.value, .dtype = Dtype::f16}
                   .call(c.count()));
  }
}

void add_factorizations(Plan& plan, const Params& p, const CacheShape& shape, const History& h, std::int64_t rows, int rank, double launches) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv || rank == 0) continue;
    for (const Side side : {Side::key, Side::value})
      plan.add(kernels::LowRank{.sequences = std::int64_t{h.sequences} * c.kv_heads, .rows = rows, .rank = rank, .dim = dim_of(c, side),
                                .dtype = shape.dtype, .keep = false}
                   .call(2.0 * p.loops * c.count() * launches));
  }
}

Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Plan plan = side_decode<Params, side_layout>(p, shape, h, counts);
  add_low_rank(plan, p, shape, h);
  add_factorizations(plan, p, shape, h, p.buffer.value, p.decode_rank, 1.0 / static_cast<double>(p.buffer.value));
  return plan;
}

Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Plan plan = side_prefill<Params, side_layout>(p, shape, h, counts);
  add_factorizations(plan, p, shape, h, coded_rows(p, h.prompt).value, p.rank, 1.0);
  return plan;
}

/// The simulation decodes everything to the dtype and attends to that.
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Plan plan = decode_plan(p, shape, h, counts);
  for (const LayerClass& c : shape.classes)
    if (c.kind == RowKind::kv)
      plan.add(kernels::Copy{.segments = std::int64_t{h.sequences} * c.kv_heads,
                             .bytes = h.tokens().value * (c.k_dim + c.v_dim) * bytes_of(shape.dtype)}
                   .call(c.count()));
  return plan;
}

std::unique_ptr<SideStore> make_side(const Params& p, const LayerClass& c, int layer, Side side, Dtype dtype, std::uint64_t seed) {
  return std::make_unique<ResidualStore>(c.kv_heads, dim_of(c, side), side, dtype,
                                         std::make_unique<gear_parts::Coder>(settings(p, c, layer, side, seed)),
                                         ResidualPolicy{.coded_rows = [p](Tokens rows) { return coded_rows(p, rows); }});
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int layer, Side side, Dtype dtype) {
  return make_side(p, c, layer, side, dtype, 0);
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs& inputs) {
  return std::make_unique<SideCache>(shape, [p, dtype = shape.dtype, seed = inputs.seed](const LayerClass& c, int layer, Side side) {
    return make_side(p, c, layer, side, dtype, seed);
  });
}

constexpr Compat kCompat[] = {
    {"outlier_count=released", "outliers of a key channel are counted from the channels of a row: in a buffer of 64 rows 31% and more stay exact"}};

}  // namespace

extern constinit const Method gear{
    .slug = "gear", .name = "GEAR", .family = Family::quantization,
    .paper = {.title = "GEAR: An Efficient KV Cache Compression Recipe for Near-Lossless Generative Inference of LLM",
              .url = "https://arxiv.org/abs/2403.05527", .year = 2024},
    .params = specs<Params>, .compat = kCompat,
    .serving = {.prefix_cache = {Works::partly, "a prompt is one block with one pair of factors a head: a shared prefix must be a block of its own"},
                .paged_cache = {Works::partly, "pages must hold whole blocks; factors and plain rows live beside them"},
                .chunked_prefill = {Works::yes, "rows stay plain until the prompt ends, so the peak is the dense cache"},
                .cuda_graphs = {Works::partly, "the compression every `buffer` steps is a second graph"},
                .tensor_parallelism = {Works::partly, "outliers and kcvt groups of values run over all heads of a row"},
                .speculation = {Works::partly, "tokens can be taken back until the next buffer is full"},
                .multi_turn = {Works::yes, ""}},
    .notes = "Outliers are the sparsity/2 largest and smallest values of a vector (a key channel over the rows coded together, a value row "
             "over all heads), at most half of it, so sparsity runs from 0 to 0.5; ties: lowest index. They are replaced by the vector's mean before the rest is coded. Scales and minima are "
             "fp16, as the paper counts them. With outliers the released simulation gives a scale bits^2 - 1 steps, at 3 bits one more than codes can "
             "name: not offered. At `buffer` rows sparsity/2 of a key channel can round to none. The fused path of the released code has no "
             "outliers and scrambles the key error before it is factored; that is not offered. Decoded rows stay float32.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .released_decode_plan = typed<released_decode_plan>, .open = typed<open>, .open_side = typed<open_side>,
    .side_layout = typed<side_layout>,
};

}  // namespace kvatlas::methods

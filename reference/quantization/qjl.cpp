// qjl: keys as the signs of random projections and their norms, the largest channels of each group of tokens apart; values as
// asymmetric integer codes.
// Source    arXiv 2406.03482, definition 3.1 and section 3; amirzandieh/QJL models/llama2_utils_qjl.py (groups, residual, outlier
//           channels), qjl_kernel/csrc/qjl_{quant,score}_kernel.cu (bits, score), run_longbench.py (defaults)
// Formula   <q, k> ~ sqrt(pi/2) / m * ||k|| * <S q, sign(S k)>, S a random m x d matrix; outlier channels have a sketch of their own;
//           values: min-max codes of a token's groups
// Keeps     every token; keys after RoPE; the newest residual_window values and up to as many keys stay in the cache's dtype
// Deviates  ||k||^2 - ||outliers||^2 below 0 counts as 0 (released: NaN); a prompt shorter than residual_window may grow (released:
//           it fails); random orthogonal rows come from our generator
#include <algorithm>
#include <array>
#include <iterator>
#include <vector>

#include "core/errors.hpp"
#include "core/formats/int_codes.hpp"
#include "core/kernels/transform.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/record_store.hpp"
#include "reference/primitives/residual_store.hpp"
#include "reference/quantization/qjl/sketch.hpp"

namespace kvatlas::methods {
namespace {

struct Params {
  int sketch_bits = 256;
  int outlier_sketch_bits = 256;
  int outlier_channels = 8;
  int group_size = 32;
  int residual_window = 128;
  int first_layers = 15;
  int v_bits = 2;
  int v_group_size = 32;
  int seed = 42;
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::sketch_bits, "sketch_bits", "bit", 16, 1024, "projections of a key; twice as many in the first layers"),
        field(&Params::outlier_sketch_bits, "outlier_sketch_bits", "bit", 16, 1024, "projections of its outlier channels; half as many in the first layers"),
        field(&Params::outlier_channels, "outlier_channels", "channel", 0, 32, "channels of a group that are sketched apart; 0 = none"),
        field(&Params::group_size, "group_size", "token", 8, 256, "tokens that share their outlier channels"),
        field(&Params::residual_window, "residual_window", "token", 8, 4096, "newest values kept plain; keys are coded in flushes of this many"),
        field(&Params::first_layers, "first_layers", "layer", 0, 1000, "leading layers with the longer sketch"),
        field(&Params::v_bits, "v_bits", "bit", 2, 8, "code width of values: 2, 4 or 8"),
        field(&Params::v_group_size, "v_group_size", "channel", 8, 256, "channels of a value that share a scale"),
        field(&Params::seed, "seed", "", 0, 65535, "of the projections")};
  }
};

/// Projections of a layer: the first ones have twice as many for keys and half as many for outliers.
struct Sizes {
  int bits, outlier_bits;
};
Sizes sizes_of(const Params& p, bool first) {
  if (p.outlier_channels == 0) return {first ? 2 * p.sketch_bits : p.sketch_bits, 0};
  return first ? Sizes{2 * p.sketch_bits, p.outlier_sketch_bits / 2} : Sizes{p.sketch_bits, p.outlier_sketch_bits};
}

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.sketch_bits % 8 != 0) return cat("sketch_bits is ", p.sketch_bits, ", must be a multiple of 8");
  if (p.outlier_sketch_bits % 16 != 0) return cat("outlier_sketch_bits is ", p.outlier_sketch_bits, ", must be a multiple of 16");
  if (p.outlier_channels > 0 && p.outlier_sketch_bits > p.sketch_bits)
    return cat("outlier_sketch_bits is ", p.outlier_sketch_bits, ", must be at most sketch_bits (", p.sketch_bits, ")");
  if (p.residual_window % p.group_size != 0) return cat("residual_window is ", p.residual_window, ", must be a multiple of group_size (", p.group_size, ")");
  if (p.v_bits != 2 && p.v_bits != 4 && p.v_bits != 8) return cat("v_bits is ", p.v_bits, ", must be 2, 4 or 8");
  if (p.v_group_size * p.v_bits % 32 != 0)
    return cat("v_group_size is ", p.v_group_size, ", must be a multiple of ", 32 / p.v_bits, " at ", p.v_bits, " bits: a group fills 32-bit words");
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    if (c.k_dim > 256) return cat("head_dim is ", c.k_dim, ", must be at most 256: an outlier channel is stored in a byte");
    if (c.k_dim < p.outlier_channels) return cat("outlier_channels is ", p.outlier_channels, ", must be at most head_dim (", c.k_dim, ")");
    if (c.v_dim % p.v_group_size != 0) return cat("v_group_size is ", p.v_group_size, ", must divide head_dim (", c.v_dim, ")");
  }
  return why_not_sides("qjl", shape, kWholeRows);
}

RecordLayout key_layout(const Params& p, const LayerClass& c, bool first) {
  const Sizes s = sizes_of(p, first);
  const std::int64_t g = p.group_size;
  RecordLayout l{.block = p.group_size,
                 .parts = {{"signs", g * s.bits / 8, Scope::token}, {"norms", 2 * g, Scope::token}},
                 .format = {.kind = CodeKind::integer, .bits = static_cast<int>(ceil_div(s.bits + s.outlier_bits, c.k_dim)), .axis = GroupAxis::channels,
                            .group_size = c.k_dim, .group_bits = 16},
                 .ageing = Ageing::flush, .residual = Tokens(p.residual_window)};
  if (p.outlier_channels > 0) {
    l.parts.push_back({"outlier_signs", g * s.outlier_bits / 8, Scope::token});
    l.parts.push_back({"outlier_norms", 2 * g, Scope::token});
    l.parts.push_back({"outlier_channels", p.outlier_channels, Scope::group});
    l.format.group_bits += 16 + static_cast<int>(ceil_div(8 * p.outlier_channels, p.group_size));
  }
  return l;
}

GroupQuantizer value_quantizer(const Params& p) { return {.bits = p.v_bits, .group_size = p.v_group_size, .axis = GroupAxis::channels}; }
Tokens coded_values(const Params& p, Tokens rows) { return std::max(Tokens(0), rows - Tokens(p.residual_window)); }

SideLayout layout_at(const Params& p, const LayerClass& c, Side side, Tokens context, bool first) {
  if (side == Side::key) return key_layout(p, c, first).side(context);
  return {.format = value_quantizer(p).format(), .plain = context - coded_values(p, context), .flush = Tokens(1)};
}

/// A side of a class; the longer sketch of the first layers is left out, the plans below count it.
SideLayout side_layout(const Params& p, const LayerClass& c, Side side, Dtype, Tokens context) { return layout_at(p, c, side, context, false); }

/// Calls f(class, how many of its layers, whether these are the first layers) for both kinds of layer of every class.
template <class F>
void for_parts(const Params& p, const CacheShape& shape, F f) {
  for (const bool first : {true, false})
    for (const LayerClass& c : shape.classes)
      f(c, static_cast<int>(std::ranges::count_if(c.layers, [&](int l) { return (l < p.first_layers) == first; })), first);
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger;
  for_parts(p, shape, [&](const LayerClass& c, int layers, bool first) {
    if (c.kind != RowKind::kv || layers == 0) return;
    const std::int64_t runs = std::int64_t{layers} * c.kv_heads * h.sequences;
    const RecordLayout keys = key_layout(p, c, first);
    const Tokens coded = keys.coded(h.tokens()), values = coded_values(p, h.tokens());
    for (const RecordPart& r : keys.parts) ledger.add(r.component, Side::key, r.scope, Bytes(coded.value / p.group_size * r.bytes * runs));
    ledger.add("residual", Side::key, Scope::sequence, Bytes((h.tokens() - coded).value * c.k_dim * bytes_of(shape.dtype) * runs));
    ledger.add("codes", Side::value, Scope::token, Bytes(values.value * c.v_dim * p.v_bits / 8 * runs));
    for (const char* meta : {"scales", "zeros"}) ledger.add(meta, Side::value, Scope::group, Bytes(values.value * c.v_dim / p.v_group_size * 2 * runs));
    ledger.add("residual", Side::value, Scope::sequence, Bytes((h.tokens() - values).value * c.v_dim * bytes_of(shape.dtype) * runs));
  });
  ledger.set_prefill(dense_ledger(shape, {.prompt = h.prompt, .sequences = h.sequences}).total());
  return ledger;
}

Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  for_parts(p, shape, [&](const LayerClass& c, int layers, bool first) {
    const std::size_t from = plan.calls().size();
    add_side_decode(plan, c, shape.dtype, h, [&](const LayerClass& of, Side side, Tokens context) { return layout_at(p, of, side, context, first); });
    plan.restrict(from, layers, c.count());
    if (c.kind == RowKind::kv)  // a query is sketched once a step
      plan.add(kernels::LowRank{.sequences = h.sequences, .rows = c.q_heads, .rank = c.k_dim, .dim = sizes_of(p, first).bits, .dtype = shape.dtype, .keep = true}
                   .call(layers));
  });
  return plan;
}

/// The released score kernel sketches the query's outlier channels anew for each group of keys.
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Plan plan = decode_plan(p, shape, h, counts);
  for_parts(p, shape, [&](const LayerClass& c, int layers, bool first) {
    const std::int64_t groups = c.kind == RowKind::kv ? key_layout(p, c, first).coded(h.tokens()).value / p.group_size : 0;
    if (groups > 0 && p.outlier_channels > 0)
      plan.add(kernels::LowRank{.sequences = h.sequences, .rows = c.q_heads * groups, .rank = p.outlier_channels, .dim = sizes_of(p, first).outlier_bits,
                                .dtype = shape.dtype}
                   .call(layers));
  });
  return plan;
}

Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  for (const bool first : {true, false}) {
    std::vector<int> layers;
    for (const LayerClass& c : shape.classes) std::ranges::copy_if(c.layers, std::back_inserter(layers), [&](int l) { return (l < p.first_layers) == first; });
    if (!layers.empty())
      plan.add(side_prefill_plan(shape_of_layers(shape, layers), h,
                                 [&](const LayerClass& c, Side side, Tokens context) { return layout_at(p, c, side, context, first); }));
  }
  return plan;
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int layer, Side side, Dtype dtype) {
  if (side == Side::value)
    return std::make_unique<ResidualStore>(c.kv_heads, c.v_dim, side, dtype, value_quantizer(p), [p](Tokens rows) { return coded_values(p, rows); });
  const bool first = layer < p.first_layers;
  const Sizes s = sizes_of(p, first);
  // One matrix for the first layers, one for the rest.
  const auto projections = std::make_shared<const Array>(
      qjl::make_projections(s.bits, c.k_dim, {.seed = static_cast<std::uint64_t>(p.seed), .layer = first ? 1U : 0U}));
  const std::size_t g = static_cast<std::size_t>(p.group_size), signs = g * static_cast<std::size_t>(s.bits) / 8, outlier_signs = g * static_cast<std::size_t>(s.outlier_bits) / 8;
  RecordCodec codec{
      .encode = [=](const RecordPlace&, View<const float> rows, std::span<std::byte> record) {
        const qjl::Sketch k = qjl::encode(rows, projections->view(), s.outlier_bits, p.outlier_channels);
        num::pack(k.bits, 1, record.first(signs));
        for (std::size_t t = 0; t < g; ++t) put_fp16(record, signs + 2 * t, k.norms[t]);
        if (p.outlier_channels == 0) return;
        const std::size_t at = signs + 2 * g;
        num::pack(k.outlier_bits, 1, record.subspan(at, outlier_signs));
        for (std::size_t t = 0; t < g; ++t) put_fp16(record, at + outlier_signs + 2 * t, k.outlier_norms[t]);
        for (std::size_t i = 0; i < k.outliers.size(); ++i) record[at + outlier_signs + 2 * g + i] = static_cast<std::byte>(k.outliers[i]);
      },
      .decode = [=](const RecordPlace&, std::span<const std::byte> record, View<float> rows) {
        qjl::Sketch k;
        k.bits.resize(8 * signs);
        num::unpack(record.first(signs), 1, k.bits);
        for (std::size_t t = 0; t < g; ++t) k.norms.push_back(get_fp16(record, signs + 2 * t));
        k.outlier_norms.resize(g);
        if (p.outlier_channels > 0) {
          const std::size_t at = signs + 2 * g;
          k.outlier_bits.resize(8 * outlier_signs);
          num::unpack(record.subspan(at, outlier_signs), 1, k.outlier_bits);
          for (std::size_t t = 0; t < g; ++t) k.outlier_norms[t] = get_fp16(record, at + outlier_signs + 2 * t);
          for (int i = 0; i < p.outlier_channels; ++i)
            k.outliers.push_back(static_cast<std::uint8_t>(record[at + outlier_signs + 2 * g + static_cast<std::size_t>(i)]));
        }
        qjl::decode(k, projections->view(), s.outlier_bits, rows);
      }};
  return std::make_unique<RecordStore>(c.kv_heads, c.k_dim, side, dtype, key_layout(p, c, first), std::move(codec));
}

}  // namespace

extern constinit const Method qjl{
    .slug = "qjl", .name = "QJL", .family = Family::quantization,
    .paper = {.title = "QJL: 1-Bit Quantized JL Transform for KV Cache Quantization with Zero Overhead", .url = "https://arxiv.org/abs/2406.03482", .year = 2024},
    .params = specs<Params>,
    .serving = {.prefix_cache = {Works::partly, "a shared prefix ends at a multiple of residual_window; its newest values must be coded anew"},
                .paged_cache = {Works::partly, "pages must hold whole groups, plain rows live beside them"},
                .chunked_prefill = {Works::yes, "rows stay plain until the prompt ends, so the peak is the dense cache"},
                .cuda_graphs = {Works::partly, "the key flush every residual_window steps is a second graph"},
                .tensor_parallelism = {Works::yes, "heads are independent"},
                .speculation = {Works::partly, "tokens can be taken back until the next value is coded"},
                .multi_turn = {Works::partly, "a later turn attends to coded rows, which the released code cannot run"}},
    .notes = "Coded keys are read as the vectors whose product with a query is the paper's estimate of the score; they are rounded to the dtype of the cache. Norms are fp16 and "
             "saturate at 65504. The projections follow from the seed and are no state of a cache: orthogonal rows in groups of head_dim, one matrix for the first layers and one for "
             "the rest. Values are KIVI's, per token. A sum of exactly 0 gives bit 0. Plans count whole bits a channel, the next above sketch bits over head_dim.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .released_decode_plan = typed<released_decode_plan>,
    .open = typed<open_sides<Params, open_side>>, .open_side = typed<open_side>, .side_layout = typed<side_layout>,
};

}  // namespace kvatlas::methods

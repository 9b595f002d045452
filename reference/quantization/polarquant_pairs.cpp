// polarquant_pairs: keys as angle and radius of each pair that the rotary embedding turns, uniform codes over groups of tokens.
// Source    arXiv 2502.00527, section 3; ericshwu/PolarQuant models/modeling_llama_polar.py (codes, residual), models/
//           kernel4group.py (table of products)
// Formula   a rotary pair (x, y) of a key: r = sqrt(x^2 + y^2), t = atan2(y, x) in [0, 2 pi); scale = (max - min) / 2^bits over a group of tokens;
//           code = floor((r - min) / scale), r' = min + (code + 1/2) scale, t alike; x' = r' cos t', y' = r' sin t'
// Keeps     every token; keys after RoPE; up to residual_window of the newest keys stay plain, values stay plain or are coded per token
// Deviates  a constant angle or radius decodes to itself (released: 0/0); keys are read back and multiplied (released: a table of a
//           query's products with every angle, the same sums in another order)
#include <algorithm>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/int_codes.hpp"
#include "core/kernels/store.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/record_store.hpp"
#include "reference/primitives/residual_store.hpp"
#include "reference/primitives/side_cache.hpp"
#include "reference/quantization/polarquant_pairs/polar_group.hpp"

namespace kvatlas::methods {
namespace {

struct Params {
  int angle_bits = 4;
  int radius_bits = 4;
  int group_size = 128;
  int residual_window = 128;
  int v_bits = 16;
  int v_group_size = 128;
  static constexpr auto fields() {
    return std::tuple{field(&Params::angle_bits, "angle_bits", "bit", 1, 7, "code width of an angle"),
                      field(&Params::radius_bits, "radius_bits", "bit", 1, 7, "code width of a radius; both together at most 8"),
                      field(&Params::group_size, "group_size", "token", 8, 256, "tokens of a pair that share ranges"),
                      field(&Params::residual_window, "residual_window", "token", 8, 4096, "keys are coded in flushes of this many; newest values kept plain"),
                      field(&Params::v_bits, "v_bits", "bit", 2, 16, "code width of values: 2, 4 or 8; 16 = plain"),
                      field(&Params::v_group_size, "v_group_size", "channel", 8, 256, "channels of a value that share a scale")};
  }
};

bool plain_values(const Params& p) { return p.v_bits == 16; }

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.angle_bits + p.radius_bits > 8)
    return cat("angle_bits and radius_bits are ", p.angle_bits, " and ", p.radius_bits, ", must be at most 8 together: a pair fills a byte");
  if (p.residual_window % p.group_size != 0) return cat("residual_window is ", p.residual_window, ", must be a multiple of group_size (", p.group_size, ")");
  if (!plain_values(p)) {
    if (p.v_bits != 2 && p.v_bits != 4 && p.v_bits != 8) return cat("v_bits is ", p.v_bits, ", must be 2, 4, 8 or 16");
    if (p.v_group_size * p.v_bits % 32 != 0)
      return cat("v_group_size is ", p.v_group_size, ", must be a multiple of ", 32 / p.v_bits, " at ", p.v_bits, " bits: a group fills 32-bit words");
  }
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    if (c.k_dim % 2 != 0) return cat("head_dim is ", c.k_dim, ", must be even: channels come in pairs");
    if (c.rope.rotary_dim != 0 && c.rope.rotary_dim != c.k_dim)
      return cat("rotary_dim is ", c.rope.rotary_dim, " of ", c.k_dim, ", must be the whole head or 0: pairs of channels are those that RoPE turns together");
    if (!plain_values(p) && c.v_dim % p.v_group_size != 0) return cat("v_group_size is ", p.v_group_size, ", must divide head_dim (", c.v_dim, ")");
  }
  return why_not_sides("polarquant_pairs", shape, kWholeRows);
}

RecordLayout key_layout(const Params& p, const LayerClass& c) {
  const std::int64_t pairs = c.k_dim / 2;
  return {.block = p.group_size,
          .parts = {{"codes", num::packed_bytes(pairs * p.group_size, p.angle_bits + p.radius_bits).value, Scope::token},
                    {"scales", 4 * pairs, Scope::group},   // fp16: of angles, of radii
                    {"minima", 4 * pairs, Scope::group}},
          .format = {.kind = CodeKind::table, .bits = static_cast<int>(ceil_div(p.angle_bits + p.radius_bits, 2)), .axis = GroupAxis::tokens,
                     .group_size = p.group_size, .group_bits = 32},
          .ageing = Ageing::flush, .residual = Tokens(p.residual_window)};
}

GroupQuantizer value_quantizer(const Params& p) { return {.bits = p.v_bits, .group_size = p.v_group_size, .axis = GroupAxis::channels}; }
Tokens coded_values(const Params& p, Tokens rows) { return plain_values(p) ? Tokens(0) : std::max(Tokens(0), rows - Tokens(p.residual_window)); }

SideLayout side_layout(const Params& p, const LayerClass& c, Side side, Dtype dtype, Tokens context) {
  if (side == Side::key) return key_layout(p, c).side(context);
  if (plain_values(p)) return {.format = CodeFormat::plain(dtype)};
  return {.format = value_quantizer(p).format(), .plain = context - coded_values(p, context), .flush = Tokens(1)};
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger;
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    const std::int64_t runs = std::int64_t{c.count()} * c.kv_heads * h.sequences;
    const RecordLayout keys = key_layout(p, c);
    const Tokens coded = keys.coded(h.tokens()), values = coded_values(p, h.tokens());
    for (const RecordPart& r : keys.parts) ledger.add(r.component, Side::key, r.scope, Bytes(coded.value / p.group_size * r.bytes * runs));
    ledger.add("residual", Side::key, Scope::sequence, Bytes((h.tokens() - coded).value * c.k_dim * bytes_of(shape.dtype) * runs));
    if (plain_values(p)) {
      ledger.add("rows", Side::value, Scope::token, Bytes(h.tokens().value * c.v_dim * bytes_of(shape.dtype) * runs));
      continue;
    }
    ledger.add("codes", Side::value, Scope::token, Bytes(values.value * c.v_dim * p.v_bits / 8 * runs));
    for (const char* meta : {"scales", "zeros"}) ledger.add(meta, Side::value, Scope::group, Bytes(values.value * c.v_dim / p.v_group_size * 2 * runs));
    ledger.add("residual", Side::value, Scope::sequence, Bytes((h.tokens() - values).value * c.v_dim * bytes_of(shape.dtype) * runs));
  }
  ledger.set_prefill(dense_ledger(shape, {.prompt = h.prompt, .sequences = h.sequences}).total());
  return ledger;
}

SideLayoutOf layout_of(const Params& p, const CacheShape& shape) {
  return [&p, dtype = shape.dtype](const LayerClass& c, Side side, Tokens context) { return side_layout(p, c, side, dtype, context); };
}
Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) { return side_decode_plan(shape, h, layout_of(p, shape)); }
/// Beside the same kernel for coded keys, every step joins a row to the plain rows by a copy and repeats them for every query
/// head of a group before it multiplies; codes are copied when a flush joins its own.
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Plan plan = decode_plan(p, shape, h, counts);
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    for (const Side side : {Side::key, Side::value}) {
      const SideLayout l = side_layout(p, c, side, shape.dtype, h.tokens());
      const bool all_plain = l.format.kind == CodeKind::plain;
      const std::int64_t heads = std::int64_t{h.sequences} * c.kv_heads, plain = (all_plain ? h.tokens() : l.plain).value * dim_of(c, side) * bytes_of(shape.dtype);
      if (plain > 0) plan.add(kernels::Copy{.segments = heads, .bytes = plain}.call(c.count()));
      if (plain > 0 && c.q_per_kv() > 1) plan.add(kernels::Copy{.segments = heads * c.q_per_kv(), .bytes = plain}.call(c.count()));
      if (!all_plain)
        plan.add(kernels::Copy{.segments = heads, .bytes = l.format.bytes((h.tokens() - l.plain).value, dim_of(c, side)).value}
                     .call(c.count() / static_cast<double>(p.residual_window)));
    }
  }
  return plan;
}
Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) { return side_prefill_plan(shape, h, layout_of(p, shape)); }

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) {
  if (side == Side::value) {
    if (plain_values(p)) return plain_store(c.kv_heads, c.v_dim, side, dtype);
    return std::make_unique<ResidualStore>(c.kv_heads, c.v_dim, side, dtype, value_quantizer(p), [p](Tokens rows) { return coded_values(p, rows); });
  }
  const polar::Pairing pairing{.neighbours = c.rope.layout == RopeLayout::interleaved};
  const auto pairs = static_cast<std::size_t>(c.k_dim / 2), values = pairs * static_cast<std::size_t>(p.group_size);
  const auto code_bytes = static_cast<std::size_t>(key_layout(p, c).parts[0].bytes);
  RecordCodec codec{
      .encode = [=](const RecordPlace&, View<const float> rows, std::span<std::byte> record) {
        Array keys({rows.dim(0), rows.dim(1)});
        for (std::int64_t t = 0; t < rows.dim(0); ++t)
          for (std::int64_t i = 0; i < rows.dim(1); ++i) keys.view()(t, i) = num::clamp(num::round_to(Dtype::f16, rows(t, i)), -46000.0F, 46000.0F);
        polar::Group g = polar::encode(keys.view(), p.angle_bits, p.radius_bits, Dtype::f16, pairing);
        for (std::size_t i = 0; i < values; ++i) g.radius_codes[i] = static_cast<std::uint8_t>(g.radius_codes[i] << p.angle_bits | g.angle_codes[i]);
        num::pack(g.radius_codes, p.angle_bits + p.radius_bits, record.first(code_bytes));
        for (std::size_t j = 0; j < pairs; ++j) {
          put_fp16(record, code_bytes + 4 * j, g.angles[j].scale);
          put_fp16(record, code_bytes + 4 * j + 2, g.radii[j].scale);
          put_fp16(record, code_bytes + 4 * (pairs + j), g.angles[j].low);
          put_fp16(record, code_bytes + 4 * (pairs + j) + 2, g.radii[j].low);
        }
      },
      .decode = [=](const RecordPlace&, std::span<const std::byte> record, View<float> rows) {
        polar::Group g;
        g.radius_codes.resize(values);
        num::unpack(record.first(code_bytes), p.angle_bits + p.radius_bits, g.radius_codes);
        for (std::uint8_t& both : g.radius_codes) {
          g.angle_codes.push_back(static_cast<std::uint8_t>(both & ((1 << p.angle_bits) - 1)));
          both = static_cast<std::uint8_t>(both >> p.angle_bits);
        }
        for (std::size_t j = 0; j < pairs; ++j) {
          g.angles.push_back({get_fp16(record, code_bytes + 4 * j), get_fp16(record, code_bytes + 4 * (pairs + j))});
          g.radii.push_back({get_fp16(record, code_bytes + 4 * j + 2), get_fp16(record, code_bytes + 4 * (pairs + j) + 2)});
        }
        polar::decode(g, rows, pairing);
      }};
  return std::make_unique<RecordStore>(c.kv_heads, c.k_dim, side, dtype, key_layout(p, c), std::move(codec));
}

}  // namespace

extern constinit const Method polarquant_pairs{
    .slug = "polarquant_pairs", .name = "PolarQuant (rotary pairs)", .family = Family::quantization,
    .paper = {.title = "PolarQuant: Leveraging Polar Transformation for Efficient Key Cache Quantization and Decoding Acceleration",
              .url = "https://arxiv.org/abs/2502.00527", .year = 2025},
    .params = specs<Params>,
    .serving = {.prefix_cache = {Works::partly, "a shared prefix ends at a multiple of residual_window"},
                .paged_cache = {Works::partly, "pages must hold whole groups, plain rows live beside them"},
                .chunked_prefill = {Works::yes, "rows stay plain until the prompt ends, so the peak is the dense cache"},
                .cuda_graphs = {Works::partly, "the flush every residual_window steps is a second graph"},
                .tensor_parallelism = {Works::yes, "heads are independent"},
                .speculation = {Works::partly, "tokens can be taken back until the next flush"},
                .multi_turn = {Works::partly, "a later turn attends to coded rows, which the released code cannot run"}},
    .notes = "Keys are rounded to fp16, at most 46000 in magnitude so that a radius has an fp16, and every step of the encoder rounds to fp16, as the released code does in an fp16 model. Pairs are those "
             "of the model's rotary embedding; the released code knows the half-split pairs alone. Decoding at bin centres never gives a group's extremes back. Plans count whole bits "
             "a channel; a fused kernel multiplies less than they say, since its table of products serves a whole group.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .released_decode_plan = typed<released_decode_plan>, .open = typed<open_sides<Params, open_side>>, .open_side = typed<open_side>, .side_layout = typed<side_layout>,
};

}  // namespace kvatlas::methods

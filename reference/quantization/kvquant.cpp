// kvquant: non-uniform codes, keys per channel before RoPE, values per token, a fixed number of outliers a token kept apart.
// Source    arXiv 2401.18079; SqueezeAILab/KVQuant quant/kvquant/simquant_module_quantizer.py (calibration, tables),
//           deployment/kvquant (packed form, outlier lists), modeling_llama.py (QuantK, QuantV)
// Formula   code = the nearest of 2^bits levels of a table, for (x - middle) / half the range: of a key channel (before RoPE), of a value token;
//           x' = level[code] * half + middle; the share `outliers` of a token's channels, furthest outside its range, is kept apart
// Keeps     every token; keys before RoPE, rotated at their place in each step; the first `sinks` tokens plain
// Deviates  tables come from a trained file or are calibrated on the prompt itself without Fisher weights (released: 16 samples
//           offline, weighted); dense codes first, then outliers in ascending channel (released: atomic additions)
#include <algorithm>
#include <array>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/kernels/attention.hpp"
#include "core/kernels/store.hpp"
#include "reference/method.hpp"
#include "reference/primitives/residual_store.hpp"
#include "reference/primitives/side_method.hpp"
#include "reference/primitives/trained.hpp"
#include "reference/quantization/kvquant/coder.hpp"

namespace kvatlas::methods {
namespace {

using kvquant_parts::Datatype;
using kvquant_parts::Storage;
constexpr std::array<std::string_view, 3> kDatatypes{"nuq", "nf", "uniform"};
constexpr std::array<std::string_view, 2> kStorages{"paper", "released"};

struct Params {
  int bits = 4;
  double outliers = 0.01;
  Tokens sinks{0};
  Datatype datatype = Datatype::nuq;
  bool q_norm = false;
  Storage storage = Storage::paper;
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::bits, "bits", "bit", 2, 4, "code width"),
        field(&Params::outliers, "outliers", "", 0, 0.2, "share of a token's channels, over all heads, that is kept apart; 0 keeps none"),
        field(&Params::sinks, "sinks", "token", 0, 1024, "first tokens, never coded"),
        choice(&Params::datatype, "datatype", kDatatypes, "code table: fitted by weighted k-means, percentiles of the normal distribution, even steps"),
        flag(&Params::q_norm, "q_norm", "shift and stretch decoded entries to the mean and deviation of what they stand for"),
        choice(&Params::storage, "storage", kStorages,
               "outliers as 16-bit value and index and two numbers a value token, or 32-bit ones and an expanded table a value token")};
  }
};

kvquant_parts::Settings settings(const Params& p, const LayerClass& c, int layer, Side side, std::uint64_t seed) {
  return {.kv_heads = c.kv_heads, .dim = dim_of(c, side), .side = side, .bits = p.bits, .outliers = p.outliers, .datatype = p.datatype,
          .q_norm = p.q_norm, .storage = p.storage, .seed = seed, .layer = layer};
}

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    for (const Side side : {Side::key, Side::value}) {
      const kvquant_parts::Settings s = settings(p, c, 0, side, 0);
      if (s.hidden() < 2 * s.each_side() + 2)
        return cat("outliers is ", p.outliers, ": ", 2 * s.each_side(), " of a token, must leave at least 2 of its ", s.hidden(), " channels");
      if (p.storage == Storage::paper && s.hidden() > 65536)
        return cat("a token has ", s.hidden(), " channels, must have at most 65536 for indices of 16 bits; storage=released has 32");
    }
  }
  return why_not_sides("kvquant", shape, kWholeRows);
}

Tokens coded_rows(const Params& p, Tokens rows) { return std::max(Tokens(0), rows - p.sinks); }

/// Bytes of one token's outliers and range, over all heads.
std::int64_t token_extras(const kvquant_parts::Settings& s) {
  const bool paper = s.storage == Storage::paper;
  return 2 * s.each_side() * (paper ? 4 : 8) + (s.side == Side::key ? 0 : paper ? 4 : 4 * (1 << s.bits));
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  const std::int64_t coded = coded_rows(p, h.tokens()).value, plain = h.tokens().value - coded;
  Ledger ledger;
  for_sides(shape, h, [&](const LayerClass& c, Side side, std::int64_t width) {
    const kvquant_parts::Settings s = settings(p, c, 0, side, 0);
    const std::int64_t layers = std::int64_t{c.count()} * h.sequences, some = coded > 0 ? layers : 0;
    ledger.add("codes", side, Scope::token, Bytes(coded * layers * c.kv_heads * ceil_div(std::int64_t{s.dim} * p.bits, 8)));
    ledger.add("outliers", side, Scope::token, Bytes(coded * layers * 2 * s.each_side() * (p.storage == Storage::paper ? 4 : 8)));
    if (side == Side::value) ledger.add("ranges", side, Scope::token, Bytes(coded * layers * (token_extras(s) - 2 * s.each_side() * (p.storage == Storage::paper ? 4 : 8))));
    if (side == Side::key) ledger.add("thresholds", side, Scope::layer, Bytes(some * 2 * s.hidden() * 2));
    ledger.add("codebook", side, Scope::layer, Bytes(some * 4 * ((1 << p.bits) + (p.q_norm ? 2 : 0))));
    if (p.sinks.value > 0) ledger.add("sink_rows", side, Scope::sequence, Bytes(plain * width * bytes_of(shape.dtype)));
  });
  ledger.set_prefill(dense_prompt(shape, h));
  return ledger;
}

SideLayout side_layout(const Params& p, const LayerClass& c, Side side, Dtype, Tokens context) {
  const kvquant_parts::Settings s = settings(p, c, 0, side, 0);
  return {.format = {.kind = CodeKind::table, .bits = p.bits, .axis = GroupAxis::channels, .group_size = s.dim,
                     .group_bits = static_cast<int>(ceil_div(8 * token_extras(s), c.kv_heads))},
          .plain = context - coded_rows(p, context), .flush = Tokens(context > p.sinks ? 0 : 1)};
}

/// One kernel over codes and lists; it rotates every key that it reads.
Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  for (const LayerClass& c : shape.classes) {
    if (add_state_step(plan, c, h)) continue;
    const SideLayout key = side_layout(p, c, Side::key, shape.dtype, h.tokens()), value = side_layout(p, c, Side::value, shape.dtype, h.tokens());
    const double launches = c.count() + static_cast<double>(c.readers.size());
    plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = shape.dtype,
                             .k_format = key.format, .v_format = value.format}
                 .call(c.count()));
    plan.add(kernels::DecodeAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim,
                                      .v_dim = c.v_dim, .dtype = shape.dtype, .tokens = h.tokens(), .k_plain = key.plain, .v_plain = value.plain,
                                      .k_format = key.format, .v_format = value.format, .rotate_keys = true}
                 .call(launches));
    plan.add(kernels::SpanMerge{.rows = std::int64_t{h.sequences} * c.q_heads, .v_dim = c.v_dim, .dtype = shape.dtype, .tokens = h.tokens()}.call(launches));
  }
  return plan;
}

/// The released path stores 32-bit lists and tables, and chooses the outliers of a token on the host.
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Params as_released = p;
  as_released.storage = Storage::released;
  Plan plan = decode_plan(as_released, shape, h, counts);
  for (const LayerClass& c : shape.classes)
    if (c.kind == RowKind::kv)
      plan.add(kernels::Transfer{.copies = h.sequences, .bytes = std::int64_t{4} * c.kv_heads * c.v_dim}.call(c.count()));
  return plan;
}

std::unique_ptr<SideStore> make_side(const Params& p, const LayerClass& c, int layer, Side side, Dtype dtype, std::uint64_t seed,
                                     kvquant_parts::Tables tables) {
  return std::make_unique<ResidualStore>(
      c.kv_heads, dim_of(c, side), side, dtype,
      std::make_unique<kvquant_parts::Coder>(settings(p, c, layer, side, seed), std::move(tables)),
      ResidualPolicy{.coded_rows = [p](Tokens rows) { return coded_rows(p, rows); }, .sinks = p.sinks, .before_rope = side == Side::key,
                     .own_step_coded = true});
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int layer, Side side, Dtype dtype) {
  return make_side(p, c, layer, side, dtype, 0, {});
}

/// Tensors layer<l>.k_lower, k_upper [kv_heads * head_dim], k_codebook, v_codebook [2^bits] ascending, and with q_norm
/// k_norm, v_norm [2]: scale and offset.
kvquant_parts::Tables tables_of(const Params& p, const TensorMap& file, const LayerClass& c, int layer, Side side) {
  const auto tensor = [&](const char* what, std::size_t count) {
    return trained_values(file, layer, cat(side == Side::key ? "k_" : "v_", what), static_cast<std::int64_t>(count));
  };
  kvquant_parts::Tables t;
  t.codebook = tensor("codebook", std::size_t{1} << p.bits);
  if (!std::ranges::is_sorted(t.codebook)) throw InvalidArgument(cat("codebooks of layer ", layer, " must be ascending"));
  if (side == Side::key) {
    const auto channels = static_cast<std::size_t>(c.kv_heads * c.k_dim);
    t.lower = tensor("lower", channels);
    t.upper = tensor("upper", channels);
    for (std::size_t i = 0; i < channels; ++i) {
      t.lower[i] = num::round_to(Dtype::f16, t.lower[i]);
      t.upper[i] = num::round_to(Dtype::f16, t.upper[i]);
      if (!num::is_finite(t.lower[i]) || !num::is_finite(t.upper[i]) || t.upper[i] < t.lower[i])
        throw InvalidArgument(cat("thresholds of channel ", i, " of layer ", layer, " must be ascending and within fp16"));
    }
  }
  if (p.q_norm) {
    const std::vector<float> norm = tensor("norm", 2);
    t.norm = {norm[0], norm[1]};
  }
  return t;
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs& inputs) {
  const auto file = inputs.trained != nullptr ? std::make_shared<const TensorMap>(*inputs.trained) : nullptr;
  return std::make_unique<SideCache>(shape, [p, file, dtype = shape.dtype, seed = inputs.seed](const LayerClass& c, int layer, Side side) {
    return make_side(p, c, layer, side, dtype, seed, file ? tables_of(p, *file, c, layer, side) : kvquant_parts::Tables{});
  });
}

constexpr Compat kCompat[] = {
    {"storage=released", "32-bit outliers and indices, and 2^bits float32 entries a value token instead of two numbers: twice the metadata"}};

}  // namespace

extern constinit const Method kvquant{
    .slug = "kvquant", .name = "KVQuant", .family = Family::quantization,
    .paper = {.title = "KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache Quantization",
              .url = "https://arxiv.org/abs/2401.18079", .year = 2024},
    .params = specs<Params>, .compat = kCompat,
    .serving = {.prefix_cache = {Works::yes, "with tables from a file; calibrated tables belong to one prompt"},
                .paged_cache = {Works::yes, ""},
                .chunked_prefill = {Works::yes, "rows stay plain until the prompt ends, so the peak is the dense cache"},
                .cuda_graphs = {Works::yes, "lists have a fixed length"},
                .tensor_parallelism = {Works::partly, "outliers and ranges of values run over all heads of a token"},
                .speculation = {Works::no, "a rejected token has been coded already"},
                .multi_turn = {Works::yes, ""}},
    .notes = "A trained file brings thresholds and code tables (tensors layer<l>.k_lower, k_upper, k_codebook, v_codebook, with q_norm k_norm and "
             "v_norm); without one they are fitted to the rows that are coded first. An outlier key is coded like the others and its list entry holds "
             "what is missing; candidates within the thresholds keep their entry with value 0. Ties: lower channel. Thresholds and, in paper storage, "
             "ranges and outliers are fp16. A channel whose thresholds are equal decodes to them (the released uniform path: to 0). "
             "The fit starts by k-means++ with draws from Philox (released: scikit-learn, seed 0). Sinks are kept before RoPE like all keys (released: after it). Decoded rows stay float32 until "
             "keys are rotated. Prompts no longer than `sinks` calibrate on the first coded token alone. Positions must be 0, 1, 2, ...",
    .why_not = typed<why_not>, .needs_unrotated = always_unrotated, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<side_prefill<Params, side_layout>>, .released_decode_plan = typed<released_decode_plan>, .open = typed<open>,
    .open_side = typed<open_side>, .side_layout = typed<side_layout>,
};

}  // namespace kvatlas::methods

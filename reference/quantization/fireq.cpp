// fireq: symmetric 4-bit codes per token; keys are scaled channel by channel first so that rotary pairs and outliers fit.
// Source    arXiv 2505.20839; llm-fireq/fireq mcomp/quant/fireQLlamaQuantizer.py (scales), modules/post_rope.py,
//           modules/cache.py (codes), kernels/triton/cache/i4fp8static.py (released store)
// Formula   f = alpha / largest length of a channel's rotary pair, for the top_channels beta / max|x| (values: 1); scale = max|x f| / 7 of a
//           group; code = rint(x f / scale); x' = code * scale / f
// Keeps     every token; keys after RoPE
// Deviates  channel factors are calibrated on the prompt, or come from a trained file (released: folded into the weights
//           offline); keys are divided by them when read, where the paper divides queries; a prompt attends to exact rows
#include <algorithm>
#include <array>
#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/kernels/store.hpp"
#include "reference/method.hpp"
#include "reference/primitives/residual_store.hpp"
#include "reference/primitives/scaled_coder.hpp"
#include "reference/primitives/selection.hpp"
#include "reference/primitives/side_method.hpp"
#include "reference/primitives/trained.hpp"

namespace kvatlas::methods {
namespace {

enum class ScaleType : std::uint8_t { e4m3, bf16 };
constexpr std::array<std::string_view, 2> kScaleTypes{"e4m3", "bf16"};
enum class Store : std::uint8_t { paper, released };
constexpr std::array<std::string_view, 2> kStores{"paper", "released"};

struct Params {  // defaults: the official configuration file, but for the scale: e4m3 is that of the stored 4-bit cache, bf16 that of the file
  int group_size = 128;
  double alpha = 1.0;
  double beta = 1.0;
  int top_channels = 3;
  ScaleType scale = ScaleType::e4m3;
  Store store = Store::paper;
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::group_size, "group_size", "element", 8, 256, "channels of a token that share a scale"),
        field(&Params::alpha, "alpha", "", 0.01, 100, "what the largest length of a rotary pair becomes"),
        field(&Params::beta, "beta", "", 0.01, 100, "what the largest magnitude of an outlier channel becomes"),
        field(&Params::top_channels, "top_channels", "channel", 0, 64, "channels of a head, with their rotary partners, that are scaled one by one"),
        choice(&Params::scale, "scale", kScaleTypes, "number format of a group's scale"),
        choice(&Params::store, "store", kStores, "codes nearest even from the stored scale, or truncated from the exact one")};
  }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    for (const int dim : {c.k_dim, c.v_dim})
      if (dim % p.group_size != 0) return cat("group_size is ", p.group_size, ", must divide head_dim (", dim, ")");
    if (p.top_channels > c.k_dim) return cat("top_channels is ", p.top_channels, ", must be at most head_dim (", c.k_dim, ")");
  }
  return why_not_sides("fireq", shape, kWholeRows);
}

GroupQuantizer quantizer(const Params& p) {
  const bool released = p.store == Store::released;
  return {.bits = 4, .group_size = p.group_size, .work = Dtype::f32, .meta = p.scale == ScaleType::e4m3 ? MetaType::e4m3 : MetaType::bf16,
          .scheme = QuantScheme::absmax, .rounding = released ? QuantRounding::truncate : QuantRounding::nearest_even, .exact_scale = released};
}

/// The channel that RoPE turns together with c; c itself where none does.
int partner(const LayerClass& c, int channel) {
  const int dim = c.rope.rotary_dim;
  if (channel < c.rope.first_channel || channel >= c.rope.first_channel + dim) return channel;
  const int at = channel - c.rope.first_channel;
  if (c.rope.layout == RopeLayout::interleaved) return c.rope.first_channel + (at ^ 1);
  return c.rope.first_channel + (at < dim / 2 ? at + dim / 2 : at - dim / 2);
}

/// alpha over the largest length of each rotary pair, which RoPE does not change; for the channels of largest magnitude and
/// their partners beta over their own largest magnitude.
std::vector<float> factors(const Params& p, const LayerClass& c, View<const float> rows) {
  std::vector<float> out;
  for (std::int64_t h = 0; h < rows.dim(0); ++h) {
    std::vector<float> largest(static_cast<std::size_t>(c.k_dim)), pair(largest.size());
    for (std::int64_t i = 0; i < rows.dim(1); ++i) {
      const auto row = rows.row(h, i);
      for (int channel = 0; channel < c.k_dim; ++channel) {
        const auto at = static_cast<std::size_t>(channel), other = static_cast<std::size_t>(partner(c, channel));
        const float a = row[std::min(at, other)], b = at == other ? 0.0F : row[std::max(at, other)];
        pair[at] = num::max(pair[at], std::sqrt(num::fma(a, a, b * b)));
        largest[at] = num::max(largest[at], std::fabs(row[at]));
      }
    }
    std::vector<bool> single(largest.size());
    for (const std::int64_t channel : top_k(largest, p.top_channels))
      single[static_cast<std::size_t>(channel)] = single[static_cast<std::size_t>(partner(c, static_cast<int>(channel)))] = true;
    for (std::size_t channel = 0; channel < largest.size(); ++channel)
      out.push_back(single[channel] ? static_cast<float>(p.beta) / largest[channel] : static_cast<float>(p.alpha) / pair[channel]);
  }
  return out;
}

Tokens coded_rows(const Params&, Tokens rows) { return rows; }

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger;
  for_sides(shape, h, [&](const LayerClass& c, Side side, std::int64_t width) {
    const std::int64_t values = h.tokens().value * width;
    ledger.add("codes", side, Scope::token, Bytes(values / 2));
    ledger.add("scales", side, Scope::group, Bytes(values / p.group_size * bytes_of(quantizer(p).meta)));
    if (side == Side::key) ledger.add("factors", side, Scope::layer, Bytes(std::int64_t{4} * c.count() * c.kv_heads * c.k_dim * h.sequences));
  });
  ledger.set_prefill(dense_prompt(shape, h));
  return ledger;
}

SideLayout side_layout(const Params& p, const LayerClass&, Side, Dtype, Tokens) { return {.format = quantizer(p).format()}; }

/// The released caches decode every row into the dtype in every step, before any attention reads it.
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Plan plan = side_decode<Params, side_layout>(p, shape, h, counts);
  for (const LayerClass& c : shape.classes)
    if (c.kind == RowKind::kv)
      plan.add(kernels::Copy{.segments = std::int64_t{h.sequences} * c.kv_heads, .bytes = h.tokens().value * (c.k_dim + c.v_dim) * bytes_of(shape.dtype)}.call(c.count()));
  return plan;
}

std::unique_ptr<SideStore> make_side(const Params& p, const LayerClass& c, Side side, Dtype dtype, std::vector<float> given) {
  std::unique_ptr<RowCoder> coder = std::make_unique<GroupCoder>(c.kv_heads, dim_of(c, side), side, quantizer(p));
  if (side == Side::key)
    coder = std::make_unique<ScaledCoder>(std::move(coder), c.kv_heads, c.k_dim, side,
                                          [p, c](View<const float> rows) { return factors(p, c, rows); }, std::move(given));
  return std::make_unique<ResidualStore>(c.kv_heads, dim_of(c, side), side, dtype, std::move(coder),
                                         ResidualPolicy{.coded_rows = [p](Tokens rows) { return coded_rows(p, rows); }, .own_step_coded = true});
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) { return make_side(p, c, side, dtype, {}); }

/// "layer<l>.k_factors" [kv_heads * head_dim], positive.
std::vector<float> given_factors(const TensorMap& file, const LayerClass& c, int layer) {
  const std::vector<float>& factors = trained_values(file, layer, "k_factors", std::int64_t{c.kv_heads} * c.k_dim);
  for (const float f : factors)
    if (f <= 0) throw InvalidArgument(cat("tensor \"", trained_name(layer, "k_factors"), "\" holds ", f, ", must be above 0"));
  return factors;
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs& inputs) {
  const auto file = inputs.trained != nullptr ? std::make_shared<const TensorMap>(*inputs.trained) : nullptr;
  return std::make_unique<SideCache>(shape, [p, file, dtype = shape.dtype](const LayerClass& c, int layer, Side side) {
    return make_side(p, c, side, dtype, file && side == Side::key ? given_factors(*file, c, layer) : std::vector<float>{});
  });
}

constexpr Compat kCompat[] = {
    {"store=released", "the released store divides by the scale before it is rounded and truncates toward zero: twice the error and a bias toward zero"}};

}  // namespace

extern constinit const Method fireq{
    .slug = "fireq", .name = "FireQ", .family = Family::quantization,
    .paper = {.title = "FireQ: Fast INT4-FP8 Kernel and RoPE-aware Quantization for LLM Inference Acceleration",
              .url = "https://arxiv.org/abs/2505.20839", .year = 2025},
    .params = specs<Params>, .compat = kCompat,
    .serving = {.prefix_cache = {Works::partly, "factors must come from a file; calibrated ones belong to one prompt"},
                .paged_cache = {Works::yes, ""},
                .chunked_prefill = {Works::yes, "rows stay plain until the prompt ends, so the peak is the dense cache"},
                .cuda_graphs = {Works::yes, ""}, .tensor_parallelism = {Works::yes, "heads are independent"},
                .speculation = {Works::no, "a rejected token has been coded already"}, .multi_turn = {Works::yes, ""}},
    .notes = "The 8-bit query and the FP8 product of the paper's kernel are not modelled: the attention is that of decoded rows. The official configuration for accuracy runs has scale=bf16, the stored 4-bit cache e4m3, the default here. A trained file has "
             "tensors layer<l>.k_factors. A group whose largest magnitude over 7 is below 2^-10 gets scale 0 and decodes to zeros. Scales saturate at 448 (e4m3). Decoded rows stay float32.",
    .why_not = typed<why_not>, .needs_unrotated = always_unrotated, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<side_decode<Params, side_layout>>,
    .prefill_plan = typed<side_prefill<Params, side_layout>>, .released_decode_plan = typed<released_decode_plan>, .open = typed<open>, .open_side = typed<open_side>, .side_layout = typed<side_layout>,
};

}  // namespace kvatlas::methods

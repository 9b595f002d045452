// fp8_kv: one byte a value, E4M3 or E5M2, one float32 scale for the keys and one for the values of a layer.
// Source    vLLM csrc/quantization/w8a8/fp8/nvidia/quant_utils.cuh (store: nearest even of x / scale, saturating; load: code
//           times scale), --calculate-kv-scales; TensorRT-LLM and SGLang store the same codes
// Keeps     every token; keys after RoPE; a token is coded before its own step attends
// Deviates  latent rows have one scale like keys (engines keep their rotary channels apart); an all-zero first call
//           calibrates to scale 1
#include <algorithm>
#include <array>
#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/fp8.hpp"
#include "reference/method.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/side_cache.hpp"

namespace kvatlas::methods {
namespace {

enum class Format : std::uint8_t { e4m3, e5m2 };
constexpr std::array<std::string_view, 2> kFormats{"e4m3", "e5m2"};

struct Params {
  Format format = Format::e4m3;
  double k_scale = 1.0;
  double v_scale = 1.0;
  bool calibrate = false;
  static constexpr auto fields() {
    return std::tuple{choice(&Params::format, "format", kFormats, "number format of a stored value"),
                      field(&Params::k_scale, "k_scale", "", 0.001, 256, "keys are divided by it before they are stored"),
                      field(&Params::v_scale, "v_scale", "", 0.001, 256, "values are divided by it before they are stored"),
                      flag(&Params::calibrate, "calibrate",
                           "take both scales of a layer from its first call instead: absmax/200 of keys, absmax/100 of values")};
  }
};

// vLLM environment variables K_SCALE_CONSTANT and V_SCALE_CONSTANT: room for later tokens under the format's 448.
constexpr float kKeyConstant = 200.0F;
constexpr float kValueConstant = 100.0F;

class Fp8Store final : public SideStore {
 public:
  Fp8Store(const Params& p, int kv_heads, int dim, Side side, Dtype dtype)
      : side_(side), calibrate_(p.calibrate), scale_(static_cast<float>(side == Side::key ? p.k_scale : p.v_scale)),
        rows_(kv_heads, dim, side, codec(p.format, dim, dtype)) {}

  void append(View<const float> rows) override {
    if (calibrate_ && rows_.size().value == 0) set_scale(rows);
    rows_.append(rows);
  }
  void settle(bool) override {}
  Tokens size() const override { return rows_.size(); }
  void read(int kv_head, std::int64_t first, View<float> out) const override { rows_.read(kv_head, first, out); }
  void drop_front(Tokens count) override { rows_.drop_front(count); }
  void crop(Tokens length) override { rows_.crop(length); }

  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override {
    rows_.buffers(prefix, out);
    std::vector<std::byte> bytes(sizeof(float));
    num::store(Dtype::f32, std::span(&scale_, 1), bytes);
    out.push_back({.name = cat(prefix, "scale"), .component = "scales", .side = side_, .scope = Scope::layer, .bytes = std::move(bytes)});
  }
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override {
    const NamedBuffer& b = find_buffer(saved, cat(prefix, "scale"));
    if (b.bytes.size() != sizeof(float)) throw InvalidArgument(cat("buffer ", b.name, " has ", b.bytes.size(), " bytes, must have 4"));
    float scale = 0;
    num::load(Dtype::f32, b.bytes, std::span(&scale, 1));
    if (!std::isfinite(scale) || scale <= 0) throw InvalidArgument(cat("buffer ", b.name, " holds ", scale, ", must be finite and above 0"));
    rows_.load(prefix, saved);
    scale_ = scale;
  }

 private:
  void set_scale(View<const float> rows) {
    float largest = 0;
    for (std::int64_t h = 0; h < rows.dim(0); ++h)
      for (std::int64_t i = 0; i < rows.dim(1); ++i)
        for (const float f : rows.row(h, i)) largest = num::max(largest, std::fabs(f));
    scale_ = largest == 0 ? 1.0F : largest / (side_ == Side::key ? kKeyConstant : kValueConstant);
  }

  RowStore::Codec codec(Format format, int dim, Dtype dtype) {
    const auto encode = format == Format::e4m3 ? &num::encode_e4m3 : &num::encode_e5m2;
    const auto decode = format == Format::e4m3 ? &num::decode_e4m3 : &num::decode_e5m2;
    return {.component = "codes", .row_bytes = dim,
            .encode = [this, encode](std::span<const float> row, std::span<std::byte> to) {
              for (std::size_t i = 0; i < row.size(); ++i) to[i] = static_cast<std::byte>(encode(row[i] / scale_));
            },
            .decode = [this, decode, dtype](std::span<const std::byte> from, std::span<float> row) {
              // A 16-bit attention kernel takes its operands in the cache's dtype.
              for (std::size_t i = 0; i < row.size(); ++i)
                row[i] = num::round_to(dtype, decode(static_cast<std::uint8_t>(from[i])) * scale_);
            }};
  }

  Side side_;
  bool calibrate_;
  float scale_;
  RowStore rows_;
};

SideLayout side_layout(const Params&, const LayerClass&, Side, Dtype, Tokens) {
  return {.format = {.kind = CodeKind::fp8, .bits = 8}};
}

std::optional<std::string> why_not(const Params&, const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind == RowKind::pooled) return std::string("a layer keeps pooled rows, must keep keys and values or latent rows");
    if (c.index_bytes > 0) return cat("a layer keeps index rows of ", c.index_bytes, " bytes a token, must keep none: fp8_kv codes keys, values and latent rows alone");
  }
  return std::nullopt;
}

Ledger ledger_formula(const Params&, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger;
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv && c.kind != RowKind::latent) continue;
    const std::int64_t rows = c.visible(h.tokens()).value * c.kv_heads * c.count() * h.sequences;
    const Bytes scale(std::int64_t{4} * c.count());  // of a layer, whatever the number of sequences
    ledger.add("codes", Side::key, Scope::token, Bytes(rows * c.k_dim));
    ledger.add("scales", Side::key, Scope::layer, scale);
    if (c.kind == RowKind::latent) continue;
    ledger.add("codes", Side::value, Scope::token, Bytes(rows * c.v_dim));
    ledger.add("scales", Side::value, Scope::layer, scale);
  }
  return ledger;
}

SideLayoutOf layout_of(const Params& p, const CacheShape& shape) {
  return [&p, dtype = shape.dtype](const LayerClass& c, Side side, Tokens context) { return side_layout(p, c, side, dtype, context); };
}

Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  return side_decode_plan(shape, h, layout_of(p, shape));
}

Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  return side_prefill_plan(shape, h, layout_of(p, shape));
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) {
  return std::make_unique<Fp8Store>(p, c.kv_heads, side == Side::key ? c.k_dim : c.v_dim, side, dtype);
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs&) {
  return std::make_unique<SideCache>(
      shape, [p, dtype = shape.dtype](const LayerClass& c, int layer, Side side) { return open_side(p, c, layer, side, dtype); });
}

constexpr Deployable kDeployable[] = {
    {"vllm", "0.3", "--kv-cache-dtype fp8_e4m3 (or fp8_e5m2), --calculate-kv-scales", "vLLM documentation, quantized KV cache"},
    {"sglang", "0.3", "--kv-cache-dtype fp8_e4m3 (or fp8_e5m2)", "SGLang server arguments"},
    {"trtllm", "0.9", "kv_cache_config.dtype fp8; quantize.py --kv_cache_dtype fp8", "TensorRT-LLM documentation, quantization"}};

}  // namespace

extern constinit const Method fp8_kv{
    .slug = "fp8_kv", .name = "FP8 KV cache", .family = Family::quantization,
    .paper = {.title = "FP8 Formats for Deep Learning", .url = "https://arxiv.org/abs/2209.05433", .year = 2022},
    .params = specs<Params>, .deployable = kDeployable,
    .serving = {.prefix_cache = {Works::yes, ""}, .paged_cache = {Works::yes, ""},
                .chunked_prefill = {Works::partly, "calibrate=true takes its scales from the first chunk alone"},
                .cuda_graphs = {Works::yes, ""}, .tensor_parallelism = {Works::yes, ""}, .speculation = {Works::yes, ""},
                .multi_turn = {Works::yes, ""}},
    .notes = "Loaded values are rounded to the dtype of the cache, as a 16-bit attention kernel takes them; kernels that compute in FP8 "
             "and fold the scales into logits and output differ by that rounding. Scales are stored per layer, 4 bytes for each side. "
             "The paper is that of the formats; engines document the cache.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .open = typed<open>, .open_side = typed<open_side>, .side_layout = typed<side_layout>,
};

}  // namespace kvatlas::methods

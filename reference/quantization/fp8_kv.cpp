// fp8_kv: one byte a value, E4M3 or E5M2, one float32 scale for the keys and one for the values of a layer or of each kv head.
// Source    vLLM csrc/quantization/w8a8/fp8/nvidia/quant_utils.cuh (store: nearest even of x / scale, saturating; load: code
//           times scale), --calculate-kv-scales; TensorRT-LLM and SGLang store the same codes
// Formula   code = E4M3(x / scale), nearest even, at most 448 (E5M2: 57344); x' = code * scale
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
#include "reference/primitives/residual_store.hpp"
#include "reference/primitives/side_cache.hpp"
#include "reference/primitives/sides.hpp"
#include "reference/primitives/trained.hpp"

namespace kvatlas::methods {
namespace {

enum class Format : std::uint8_t { e4m3, e5m2 };
constexpr std::array<std::string_view, 2> kFormats{"e4m3", "e5m2"};
enum class Granularity : std::uint8_t { layer, head };
constexpr std::array<std::string_view, 2> kGranularities{"layer", "head"};
enum class Target : std::uint8_t { constant, format_max };
constexpr std::array<std::string_view, 2> kTargets{"constant", "format_max"};

struct Params {
  Format format = Format::e4m3;
  double k_scale = 1.0;
  double v_scale = 1.0;
  bool calibrate = false;
  Granularity granularity = Granularity::layer;
  Target target = Target::constant;
  double least_scale = 0.0;
  static constexpr auto fields() {
    return std::tuple{choice(&Params::format, "format", kFormats, "number format of a stored value"),
                      field(&Params::k_scale, "k_scale", "", 0.001, 256, "keys are divided by it before they are stored"),
                      field(&Params::v_scale, "v_scale", "", 0.001, 256, "values are divided by it before they are stored"),
                      flag(&Params::calibrate, "calibrate", "take the scales of a layer from its first call instead: largest magnitude over the target"),
                      choice(&Params::granularity, "granularity", kGranularities, "whose values share a scale: a layer's or a kv head's"),
                      choice(&Params::target, "target", kTargets,
                             "what the largest magnitude of the first call becomes: 200 for keys and 100 for values, or the format's largest value"),
                      field(&Params::least_scale, "least_scale", "", 0, 1, "scales below it are raised to it")};
  }
};

// vLLM environment variables K_SCALE_CONSTANT and V_SCALE_CONSTANT: room for later tokens under the format's 448.
constexpr float kKeyConstant = 200.0F;
constexpr float kValueConstant = 100.0F;

class Fp8Coder final : public RowCoder {
 public:
  /// `scales` replace the parameters' scale where they are given: one a kv head, or one.
  Fp8Coder(const Params& p, int kv_heads, int dim, Side side, std::vector<float> scales = {})
      : p_(p), dim_(dim), side_(side), calibrate_(p.calibrate && scales.empty()), codes_(static_cast<std::size_t>(kv_heads)),
        scales_(std::move(scales)) {
    if (scales_.empty()) scales_.push_back(static_cast<float>(side == Side::key ? p.k_scale : p.v_scale));
    if (p_.granularity == Granularity::head) scales_.resize(codes_.size(), scales_.front());
    for (float& s : scales_) s = num::max(s, static_cast<float>(p_.least_scale));
  }

  std::int64_t rows() const override { return static_cast<std::int64_t>(codes_.front().size()) / dim_; }
  void append(View<const float> rows) override {
    if (calibrate_ && this->rows() == 0) set_scales(rows);
    const auto encode = p_.format == Format::e4m3 ? &num::encode_e4m3 : &num::encode_e5m2;
    for (std::size_t h = 0; h < codes_.size(); ++h)
      for (std::int64_t i = 0; i < rows.dim(1); ++i)
        for (const float f : rows.row(static_cast<std::int64_t>(h), i)) codes_[h].push_back(static_cast<std::byte>(encode(f / scale_of(h))));
  }
  void read(int kv_head, std::int64_t first, View<float> out) const override {
    const auto decode = p_.format == Format::e4m3 ? &num::decode_e4m3 : &num::decode_e5m2;
    const auto h = static_cast<std::size_t>(kv_head);
    for (std::int64_t i = 0; i < out.dim(0); ++i)
      for (std::int64_t c = 0; c < dim_; ++c)
        out(i, c) = decode(std::to_integer<std::uint8_t>(codes_[h][static_cast<std::size_t>((first + i) * dim_ + c)])) * scale_of(h);
  }
  void drop_front(std::int64_t count) override {
    for (auto& run : codes_) {
      run.erase(run.begin(), run.begin() + count * dim_);
      run.shrink_to_fit();
    }
  }
  void truncate(std::int64_t rows) override {
    for (auto& run : codes_) run.resize(std::min(run.size(), static_cast<std::size_t>(rows * dim_)));
  }
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override {
    for (std::size_t h = 0; h < codes_.size(); ++h)
      out.push_back({.name = cat(prefix, "codes/head", h), .component = "codes", .side = side_, .scope = Scope::token, .bytes = codes_[h]});
    std::vector<std::byte> bytes(scales_.size() * sizeof(float));
    num::store(Dtype::f32, scales_, bytes);
    out.push_back({.name = cat(prefix, "scale"), .component = "scales", .side = side_,
                   .scope = p_.granularity == Granularity::head ? Scope::head : Scope::layer, .bytes = std::move(bytes)});
  }
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override {
    const NamedBuffer& b = find_buffer(saved, cat(prefix, "scale"));
    if (b.bytes.size() != scales_.size() * sizeof(float))
      throw InvalidArgument(cat("buffer ", b.name, " has ", b.bytes.size(), " bytes, must have ", scales_.size() * sizeof(float)));
    num::load(Dtype::f32, b.bytes, scales_);
    for (const float s : scales_)
      if (!std::isfinite(s) || s <= 0) throw InvalidArgument(cat("buffer ", b.name, " holds ", s, ", must be finite and above 0"));
    for (std::size_t h = 0; h < codes_.size(); ++h) {
      const NamedBuffer& run = find_buffer(saved, cat(prefix, "codes/head", h));
      if (run.bytes.size() % static_cast<std::size_t>(dim_) != 0 || (h > 0 && run.bytes.size() != codes_.front().size()))
        throw InvalidArgument(cat("buffer ", run.name, " has ", run.bytes.size(), " bytes, must be whole rows of ", dim_,
                                  " bytes, as many in every head"));
      codes_[h] = run.bytes;
    }
  }
  std::unique_ptr<RowCoder> fresh() const override {
    return std::make_unique<Fp8Coder>(p_, static_cast<int>(codes_.size()), dim_, side_, calibrate_ ? std::vector<float>{} : scales_);
  }

 private:
  float scale_of(std::size_t head) const { return scales_[p_.granularity == Granularity::head ? head : 0]; }
  void set_scales(View<const float> rows) {
    const float largest_code = p_.format == Format::e4m3 ? 448.0F : 57344.0F;
    const float target = p_.target == Target::format_max ? largest_code : side_ == Side::key ? kKeyConstant : kValueConstant;
    std::vector<float> largest(scales_.size(), 0.0F);
    for (std::int64_t h = 0; h < rows.dim(0); ++h) {
      float& m = largest[p_.granularity == Granularity::head ? static_cast<std::size_t>(h) : 0];
      for (std::int64_t i = 0; i < rows.dim(1); ++i)
        for (const float f : rows.row(h, i)) m = num::max(m, std::fabs(f));
    }
    for (std::size_t s = 0; s < scales_.size(); ++s) {
      const float scale = largest[s] / target;
      scales_[s] = num::max(scale == 0 ? 1.0F : scale, static_cast<float>(p_.least_scale));
    }
  }

  Params p_;
  int dim_;
  Side side_;
  bool calibrate_;
  std::vector<std::vector<std::byte>> codes_;  // one run a kv head
  std::vector<float> scales_;                  // one a kv head, or one
};

SideLayout side_layout(const Params&, const LayerClass&, Side, Dtype, Tokens) {
  return {.format = {.kind = CodeKind::fp8, .bits = 8}};
}

std::optional<std::string> why_not(const Params&, const CacheShape& shape) { return why_not_sides("fp8_kv", shape); }

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger;
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv && c.kind != RowKind::latent) continue;
    const std::int64_t rows = c.visible(h.tokens()).value * c.kv_heads * c.count() * h.sequences;
    const bool per_head = p.granularity == Granularity::head;
    // Sequences share given scales; what a first call calibrates is its sequence's own.
    const Bytes scale(std::int64_t{4} * c.count() * (per_head ? c.kv_heads : 1) * (p.calibrate ? h.sequences : 1));
    const Scope scope = per_head ? Scope::head : Scope::layer;
    ledger.add("codes", Side::key, Scope::token, Bytes(rows * c.k_dim));
    ledger.add("scales", Side::key, scope, scale);
    if (c.kind == RowKind::latent) continue;
    ledger.add("codes", Side::value, Scope::token, Bytes(rows * c.v_dim));
    ledger.add("scales", Side::value, scope, scale);
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

std::unique_ptr<SideStore> make_side(const Params& p, const LayerClass& c, Side side, Dtype dtype, std::vector<float> scales) {
  return std::make_unique<CodedStore>(
      dtype, std::make_unique<Fp8Coder>(p, c.kv_heads, dim_of(c, side), side, std::move(scales)));
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) { return make_side(p, c, side, dtype, {}); }

/// "layer<l>.k_scale" and "layer<l>.v_scale" of a calibrated checkpoint: one scale, or one a kv head with granularity=head.
std::vector<float> calibrated(const Params& p, const TensorMap& file, const LayerClass& c, int layer, Side side) {
  const char* part = side == Side::key ? "k_scale" : "v_scale";
  const std::vector<float>& scales = trained_values(file, layer, part, p.granularity == Granularity::head ? c.kv_heads : 1);
  for (const float s : scales)
    if (s <= 0) throw InvalidArgument(cat("tensor \"", trained_name(layer, part), "\" holds ", s, ", must be above 0"));
  return scales;
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs& inputs) {
  const auto file = inputs.trained != nullptr ? std::make_shared<const TensorMap>(*inputs.trained) : nullptr;
  return std::make_unique<SideCache>(shape, [p, file, dtype = shape.dtype](const LayerClass& c, int layer, Side side) {
    return make_side(p, c, side, dtype, file ? calibrated(p, *file, c, layer, side) : std::vector<float>{});
  });
}

constexpr Compat kCompat[] = {{"least_scale=1", "ModelOpt raises scales to at least 1 when it exports a checkpoint: small values fall among the subnormals"}};

constexpr Deployable kDeployable[] = {
    {"vllm", "0.3", "--kv-cache-dtype fp8_e4m3 (or fp8_e5m2), --calculate-kv-scales", "vLLM documentation, quantized KV cache"},
    {"sglang", "0.3", "--kv-cache-dtype fp8_e4m3 (or fp8_e5m2)", "SGLang server arguments"},
    {"trtllm", "0.9", "kv_cache_config.dtype fp8; quantize.py --kv_cache_dtype fp8", "TensorRT-LLM documentation, quantization"}};

}  // namespace

extern constinit const Method fp8_kv{
    .slug = "fp8_kv", .name = "FP8 KV cache", .family = Family::quantization,
    .paper = {.title = "FP8 Formats for Deep Learning", .url = "https://arxiv.org/abs/2209.05433", .year = 2022},
    .params = specs<Params>, .compat = kCompat, .deployable = kDeployable,
    .serving = {.prefix_cache = {Works::yes, ""}, .paged_cache = {Works::yes, ""},
                .chunked_prefill = {Works::partly, "calibrate=true takes its scales from the first chunk alone"},
                .cuda_graphs = {Works::yes, ""}, .tensor_parallelism = {Works::yes, ""}, .speculation = {Works::yes, ""},
                .multi_turn = {Works::yes, ""}},
    .notes = "Loaded values are rounded to the dtype of the cache, as a 16-bit attention kernel takes them; kernels that compute in FP8 "
             "and fold the scales into logits and output differ by that rounding. Scales take 4 bytes a layer or kv head and side, with calibrate=true for each sequence; a trained file (tensors layer<l>.k_scale and "
             "layer<l>.v_scale) overrides parameters and calibration. "
             "The paper is that of the formats; engines document the cache.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .open = typed<open>, .open_side = typed<open_side>, .side_layout = typed<side_layout>,
};

}  // namespace kvatlas::methods

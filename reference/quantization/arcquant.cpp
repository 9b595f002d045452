// arcquant: block-scaled 4-bit floats, and for keys a second pass over the error of the channels with the largest values.
// Source    arXiv 2601.07475; actypedef/ARCQuant model/quantize.py, kernels/src/reorder.cu (blocks, residual channels of
//           activations); keys as the left side of the score product are our extension of it
// Formula   NVFP4 of all channels, x' = code * s * g; the residual_channels of largest magnitude also code x - x' in the same format,
//           and a score is q . x' plus their coded error
// Keeps     every token; keys after RoPE
// Deviates  the official code gives activations residual channels and its cache plain 4-bit integers; channels and tensor
//           scales come from the prompt, or from a trained file; elements that tie round to even, as its kernel does
#include <algorithm>
#include <array>
#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/fp4.hpp"
#include "core/formats/fp8.hpp"
#include "core/formats/int_codes.hpp"
#include "reference/method.hpp"
#include "reference/primitives/numbers.hpp"
#include "reference/primitives/residual_store.hpp"
#include "reference/primitives/selection.hpp"
#include "reference/primitives/side_method.hpp"
#include "reference/primitives/trained.hpp"

namespace kvatlas::methods {
namespace {

constexpr int kBlock = 16;  // values of one block scale

struct Params {
  int residual_channels = 16;
  static constexpr auto fields() {
    return std::tuple{field(&Params::residual_channels, "residual_channels", "channel", 0, 256,
                            "key channels of a head whose error is coded once more, a multiple of 16")};
  }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.residual_channels % kBlock != 0) return cat("residual_channels is ", p.residual_channels, ", must be a multiple of ", kBlock);
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    for (const int dim : {c.k_dim, c.v_dim})
      if (dim % kBlock != 0) return cat("head_dim is ", dim, ", must be a multiple of ", kBlock, ": a block scale serves ", kBlock, " channels");
    if (p.residual_channels > c.k_dim) return cat("residual_channels is ", p.residual_channels, ", must be at most head_dim (", c.k_dim, ")");
  }
  return why_not_sides("arcquant", shape, kWholeRows);
}

int extra(const Params& p, Side side) { return side == Side::key ? p.residual_channels : 0; }

/// A channel that stands twice among the `each` channels of one head.
std::optional<std::uint16_t> repeated(std::span<const std::uint16_t> channels, int each) {
  for (std::size_t i = 0; i < channels.size(); ++i)
    for (std::size_t j = i - i % static_cast<std::size_t>(each); j < i; ++j)
      if (channels[i] == channels[j]) return channels[i];
  return std::nullopt;
}

class Coder final : public RowCoder {
 public:
  /// `given` channels replace those of the prompt.
  Coder(const Params& p, int kv_heads, int dim, Side side, std::vector<std::uint16_t> given = {})
      : p_(p), kv_heads_(kv_heads), dim_(dim), side_(side), given_(std::move(given)), codes_(static_cast<std::size_t>(kv_heads)), scales_(codes_.size()) {}

  std::int64_t rows() const override { return static_cast<std::int64_t>(codes_.front().size()) * 2 / width(); }
  void append(View<const float> rows) override {
    if (this->rows() == 0) calibrate(rows);
    for (int h = 0; h < kv_heads_; ++h)
      for (std::int64_t i = 0; i < rows.dim(1); ++i) append_row(h, rows.row(h, i));
  }
  void read(int kv_head, std::int64_t first, View<float> out) const override {
    for (std::int64_t i = 0; i < out.dim(0); ++i) {
      for (std::int64_t c = 0; c < dim_; ++c) out(i, c) = value(kv_head, first + i, c);
      for (int e = 0; e < extra(p_, side_); ++e) {
        const std::int64_t channel = channels_[static_cast<std::size_t>(kv_head * extra(p_, side_) + e)];
        out(i, channel) = out(i, channel) + value(kv_head, first + i, dim_ + e);
      }
    }
  }
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override {
    const auto add = [&](const char* component, Scope scope, const std::string& name, std::vector<std::byte> bytes) {
      out.push_back({.name = prefix + name, .component = component, .side = side_, .scope = scope, .bytes = std::move(bytes)});
    };
    for (std::size_t h = 0; h < codes_.size(); ++h) {
      add("codes", Scope::token, cat("codes/head", h), codes_[h]);
      add("scales", Scope::group, cat("scales/head", h), scales_[h]);
    }
    std::vector<std::byte> scale(rows() > 0 ? 4 : 0), channels;
    if (!scale.empty()) num::store(Dtype::f32, std::span(&tensor_scale_, 1), scale);
    for (const std::uint16_t c : channels_) append_whole(channels, c, 2);
    add("tensor_scale", Scope::layer, "tensor_scale", std::move(scale));
    if (extra(p_, side_) > 0) add("channels", Scope::head, "channels", std::move(channels));
  }
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override {
    const auto find = [&](const std::string& name) -> const std::vector<std::byte>& { return find_buffer(saved, prefix + name).bytes; };
    const std::size_t row = static_cast<std::size_t>(width() / 2), count = find("codes/head0").size() / row;
    for (std::size_t h = 0; h < codes_.size(); ++h) {
      codes_[h] = find(cat("codes/head", h));
      scales_[h] = find(cat("scales/head", h));
      if (codes_[h].size() != count * row || scales_[h].size() != count * static_cast<std::size_t>(width() / kBlock))
        throw InvalidArgument(cat("buffers ", prefix, "codes/head", h, " and scales/head", h, " must hold whole rows of ", width(), " values, as many in every head"));
      for (const std::byte b : scales_[h])
        if (std::to_integer<int>(b) >= 0x7F) throw InvalidArgument(cat("buffer ", prefix, "scales/head", h, " holds 0x7F or more, which no block scale is"));
    }
    const std::size_t channels = count > 0 ? static_cast<std::size_t>(kv_heads_ * extra(p_, side_)) : 0;
    if (find("tensor_scale").size() != (count > 0 ? 4U : 0U)) throw InvalidArgument(cat("buffer ", prefix, "tensor_scale must have 4 bytes once rows are coded"));
    if (extra(p_, side_) > 0) {
      const auto& bytes = find("channels");
      if (bytes.size() != 2 * channels) throw InvalidArgument(cat("buffer ", prefix, "channels has ", bytes.size(), " bytes, must have ", 2 * channels));
      for (std::size_t i = 0; i < channels; ++i) {
        const std::int64_t c = whole_at(bytes, static_cast<std::int64_t>(i), 2);
        if (c >= dim_) throw InvalidArgument(cat("buffer ", prefix, "channels holds ", c, ", must be below ", dim_));
        channels_.push_back(static_cast<std::uint16_t>(c));
      }
      if (const auto twice = repeated(channels_, extra(p_, side_))) throw InvalidArgument(cat("buffer ", prefix, "channels names channel ", *twice, " of a head twice"));
    }
    if (count == 0) return;
    num::load(Dtype::f32, find("tensor_scale"), std::span(&tensor_scale_, 1));
    if (!num::is_finite(tensor_scale_) || tensor_scale_ <= 0) throw InvalidArgument(cat("buffer ", prefix, "tensor_scale holds ", tensor_scale_, ", must be finite and above 0"));
  }
  std::unique_ptr<RowCoder> fresh() const override { return std::make_unique<Coder>(p_, kv_heads_, dim_, side_, given_); }

 private:
  std::int64_t width() const { return dim_ + extra(p_, side_); }

  void calibrate(View<const float> rows) {
    float all = 0;
    channels_ = given_;
    for (std::int64_t h = 0; h < kv_heads_; ++h) {
      std::vector<float> largest(static_cast<std::size_t>(dim_), 0.0F);
      for (std::int64_t i = 0; i < rows.dim(1); ++i)
        for (std::size_t c = 0; c < largest.size(); ++c) largest[c] = num::max(largest[c], std::fabs(rows.row(h, i)[c]));
      for (const float f : largest) all = num::max(all, f);
      if (given_.empty())
        for (const std::int64_t c : top_k(largest, extra(p_, side_))) channels_.push_back(static_cast<std::uint16_t>(c));
    }
    tensor_scale_ = all / (448.0F * 6.0F);
    if (tensor_scale_ == 0) tensor_scale_ = 1.0F;
  }

  void append_row(int head, std::span<const float> row) {
    const auto h = static_cast<std::size_t>(head);
    std::vector<float> x(row.begin(), row.end());
    std::vector<std::uint8_t> codes;
    const auto code_block = [&](std::size_t first) {
      float largest = 0;
      for (std::size_t i = first; i < first + kBlock; ++i) largest = num::max(largest, std::fabs(x[i]));
      const std::uint8_t scale = num::encode_e4m3(num::clamp(largest / (6.0F * tensor_scale_), 0x1p-9F, 448.0F));
      const float inverse = 1.0F / (num::decode_e4m3(scale) * tensor_scale_);
      scales_[h].push_back(static_cast<std::byte>(scale));
      for (std::size_t i = first; i < first + kBlock; ++i) codes.push_back(num::encode_e2m1(num::clamp(x[i] * inverse, -6.0F, 6.0F)));
    };
    for (std::size_t first = 0; first < row.size(); first += kBlock) code_block(first);
    for (int e = 0; e < extra(p_, side_); ++e) {
      const std::size_t c = channels_[h * static_cast<std::size_t>(extra(p_, side_)) + static_cast<std::size_t>(e)];
      const std::size_t block = scales_[h].size() - static_cast<std::size_t>(dim_ / kBlock) - static_cast<std::size_t>(e / kBlock) + c / kBlock;
      x.push_back(row[c] - num::decode_e2m1(codes[c]) * (num::decode_e4m3(std::to_integer<std::uint8_t>(scales_[h][block])) * tensor_scale_));
      if (e % kBlock == kBlock - 1) code_block(x.size() - kBlock);
    }
    const std::size_t at = codes_[h].size();
    codes_[h].resize(at + codes.size() / 2);
    num::pack(codes, 4, std::span(codes_[h]).subspan(at));
  }

  float value(int head, std::int64_t row, std::int64_t channel) const {
    const auto h = static_cast<std::size_t>(head);
    const std::uint32_t code = num::code_at(reinterpret_cast<const std::uint8_t*>(codes_[h].data()), row * width() + channel, 4);
    const auto scale = std::to_integer<std::uint8_t>(scales_[h][static_cast<std::size_t>((row * width() + channel) / kBlock)]);
    return num::decode_e2m1(static_cast<std::uint8_t>(code)) * (num::decode_e4m3(scale) * tensor_scale_);
  }

  Params p_;
  int kv_heads_, dim_;
  Side side_;
  std::vector<std::uint16_t> given_, channels_;
  float tensor_scale_ = 0;
  std::vector<std::vector<std::byte>> codes_, scales_;  // one run a kv head: a row's channels, then its residual channels
};

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger;
  for_sides(shape, h, [&](const LayerClass& c, Side side, std::int64_t width) {
    const std::int64_t heads = width / dim_of(c, side), values = h.tokens().value * heads * (dim_of(c, side) + extra(p, side));
    ledger.add("codes", side, Scope::token, Bytes(values / 2));
    ledger.add("scales", side, Scope::group, Bytes(values / kBlock));
    ledger.add("tensor_scale", side, Scope::layer, Bytes(std::int64_t{4} * c.count() * h.sequences));
    if (extra(p, side) > 0) ledger.add("channels", side, Scope::head, Bytes(heads * extra(p, side) * 2));
  });
  ledger.set_prefill(dense_prompt(shape, h));
  return ledger;
}

SideLayout side_layout(const Params& p, const LayerClass& c, Side side, Dtype, Tokens) {
  const int dim = dim_of(c, side);
  if (extra(p, side) == 0) return {.format = {.kind = CodeKind::fp4, .bits = 4, .axis = GroupAxis::channels, .group_size = kBlock, .group_bits = 8}};
  return {.format = spread_format(CodeKind::fp4, GroupAxis::channels, dim, 4.5 * (dim + extra(p, side)))};
}

std::unique_ptr<SideStore> make_side(const Params& p, const LayerClass& c, Side side, Dtype dtype, std::vector<std::uint16_t> given) {
  return std::make_unique<ResidualStore>(c.kv_heads, dim_of(c, side), side, dtype,
                                         std::make_unique<Coder>(p, c.kv_heads, dim_of(c, side), side, std::move(given)),
                                         ResidualPolicy{.coded_rows = [](Tokens rows) { return rows; }, .own_step_coded = true});
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) { return make_side(p, c, side, dtype, {}); }

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs& inputs) {
  const auto file = inputs.trained != nullptr ? std::make_shared<const TensorMap>(*inputs.trained) : nullptr;
  return std::make_unique<SideCache>(shape, [p, file, dtype = shape.dtype](const LayerClass& c, int layer, Side side) {
    // "layer<l>.k_channels" [kv_heads, residual_channels]
    return make_side(p, c, side, dtype,
                     file && extra(p, side) > 0 ? trained_channels(*file, layer, "k_channels", c.kv_heads, p.residual_channels, c.k_dim)
                                                : std::vector<std::uint16_t>{});
  });
}

}  // namespace

extern constinit const Method arcquant{
    .slug = "arcquant", .name = "ARCQuant residual channels", .family = Family::quantization,
    .paper = {.title = "ARCQuant: Boosting NVFP4 Quantization with Augmented Residual Channels for LLMs",
              .url = "https://arxiv.org/abs/2601.07475", .year = 2026},
    .params = specs<Params>,
    .serving = {.prefix_cache = {Works::partly, "channels must come from a file; the prompt's own belong to one prompt"},
                .paged_cache = {Works::yes, ""},
                .chunked_prefill = {Works::yes, "rows stay plain until the prompt ends, so the peak is the dense cache"},
                .cuda_graphs = {Works::yes, ""}, .tensor_parallelism = {Works::partly, "one tensor scale for all heads of a layer"},
                .speculation = {Works::no, "a rejected token has been coded already"}, .multi_turn = {Works::yes, ""}},
    .notes = "An extension: the paper augments activations and weights. A score is q.Q(k) plus q over the residual channels times their coded error, so keys "
             "can have them; values are summed over tokens and cannot. Tensor scale: largest magnitude of the prompt over 2688; block scales are clamped to "
             "[2^-9, 448]; later rows beyond that saturate. Sixteen residual channels are assumed, the fewest that fill a block; the official code chooses their number "
             "for each layer of activations. A trained file has tensors layer<l>.k_channels. Decoded rows stay float32.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<side_decode<Params, side_layout>>,
    .prefill_plan = typed<side_prefill<Params, side_layout>>, .open = typed<open>, .open_side = typed<open_side>, .side_layout = typed<side_layout>,
};

}  // namespace kvatlas::methods

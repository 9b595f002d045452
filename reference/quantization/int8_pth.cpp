// int8_pth: one signed byte a value and one float32 scale for each token and kv head.
// Source    sheet int8_pth; vLLM's dynamic per-token-head cache: scale = max(absmax / 127, 1e-6), code = x * (1 / scale)
// Keeps     every token; keys after RoPE; a token is coded before its own step attends
// Deviates  codes round to nearest even; the released store truncates toward zero (rounding=truncate)
#include <array>
#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "reference/method.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/side_cache.hpp"

namespace kvatlas::methods {
namespace {

enum class Rounding : std::uint8_t { nearest, truncate };
constexpr std::array<std::string_view, 2> kRoundings{"nearest", "truncate"};

struct Params {
  Rounding rounding = Rounding::nearest;
  static constexpr auto fields() {
    return std::tuple{choice(&Params::rounding, "rounding", kRoundings, "how x / scale becomes an integer; truncate is the released store")};
  }
};

/// absmax / 127, at least 1e-6: a row of zeros gets codes 0 and a finite inverse.
float scale_of(std::span<const float> row) {
  float largest = 0;
  for (const float f : row) largest = num::max(largest, std::fabs(f));
  return num::max(largest / 127.0F, 1e-6F);
}

/// Codes and scales of one side of a layer, as two runs of independent rows.
class Int8Store final : public SideStore {
 public:
  Int8Store(const Params& p, int kv_heads, int dim, Side side, Dtype dtype)
      : dtype_(dtype), codes_(kv_heads, dim, side, codes(p, dim)), scales_(kv_heads, dim, side, scales()) {}

  void append(View<const float> rows) override {
    codes_.append(rows);
    scales_.append(rows);
  }
  void settle(bool) override {}
  Tokens size() const override { return codes_.size(); }
  void read(int kv_head, std::int64_t first, View<float> out) const override {
    Array scale({out.dim(0), out.dim(1)});
    scales_.read(kv_head, first, scale.view());
    codes_.read(kv_head, first, out);
    for (std::int64_t i = 0; i < out.dim(0); ++i)
      for (float& f : out.row(i)) f = num::round_to(dtype_, f * scale.view()(i, 0));
  }
  void drop_front(Tokens count) override {
    codes_.drop_front(count);
    scales_.drop_front(count);
  }
  void crop(Tokens length) override {
    codes_.crop(length);
    scales_.crop(length);
  }
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override {
    codes_.buffers(prefix, out);
    scales_.buffers(prefix, out);
  }
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override {
    RowStore codes = codes_, scales = scales_;
    codes.load(prefix, saved);
    scales.load(prefix, saved);
    if (codes.size() != scales.size())
      throw InvalidArgument(cat(prefix, "codes has ", codes.size().value, " rows, scales ", scales.size().value, ", must be as many"));
    codes_ = std::move(codes);
    scales_ = std::move(scales);
  }

 private:
  static RowStore::Codec codes(const Params& p, int dim) {
    return {.component = "codes", .row_bytes = dim,
            .encode = [rounding = p.rounding](std::span<const float> row, std::span<std::byte> to) {
              const float inverse = 1.0F / scale_of(row);
              for (std::size_t i = 0; i < row.size(); ++i) {
                const float x = num::clamp(row[i] * inverse, -128.0F, 127.0F);
                to[i] = static_cast<std::byte>(static_cast<std::int8_t>(rounding == Rounding::nearest ? num::rint(x) : std::trunc(x)));
              }
            },
            .decode = [](std::span<const std::byte> from, std::span<float> row) {
              for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>(static_cast<std::int8_t>(from[i]));
            }};
  }
  static RowStore::Codec scales() {
    return {.component = "scales", .row_bytes = sizeof(float),
            .encode = [](std::span<const float> row, std::span<std::byte> to) {
              const float scale = scale_of(row);
              num::store(Dtype::f32, std::span(&scale, 1), to);
            },
            .decode = [](std::span<const std::byte> from, std::span<float> row) { num::load(Dtype::f32, from, row.first(1)); },
            .scope = Scope::group};
  }

  Dtype dtype_;
  RowStore codes_, scales_;
};

std::optional<std::string> why_not(const Params&, const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind == RowKind::pooled) return std::string("a layer keeps pooled rows, must keep keys and values or latent rows");
    if (c.index_bytes > 0) return cat("a layer keeps index rows of ", c.index_bytes, " bytes a token, must keep none: int8_pth codes keys, values and latent rows alone");
  }
  return std::nullopt;
}

SideLayout side_layout(const Params&, const LayerClass& c, Side side, Dtype, Tokens) {
  return {.format = {.kind = CodeKind::integer, .bits = 8, .axis = GroupAxis::channels,
                     .group_size = side == Side::key ? c.k_dim : c.v_dim, .group_bits = 32}};
}

Ledger ledger_formula(const Params&, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger;
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv && c.kind != RowKind::latent) continue;
    const std::int64_t rows = c.visible(h.tokens()).value * c.kv_heads * c.count() * h.sequences;
    for (const Side side : {Side::key, Side::value}) {
      if (side == Side::value && c.kind == RowKind::latent) continue;
      ledger.add("codes", side, Scope::token, Bytes(rows * (side == Side::key ? c.k_dim : c.v_dim)));
      ledger.add("scales", side, Scope::group, Bytes(rows * 4));  // float32
    }
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
  return std::make_unique<Int8Store>(p, c.kv_heads, side == Side::key ? c.k_dim : c.v_dim, side, dtype);
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs&) {
  return std::make_unique<SideCache>(
      shape, [p, dtype = shape.dtype](const LayerClass& c, int layer, Side side) { return open_side(p, c, layer, side, dtype); });
}

constexpr Compat kCompat[] = {{"rounding=truncate", "the released store casts to int8, which truncates: twice the error and a bias toward zero"}};

}  // namespace

extern constinit const Method int8_pth{
    .slug = "int8_pth", .name = "INT8 per token and head", .family = Family::quantization,
    .paper = {.title = "Efficient Memory Management for Large Language Model Serving with PagedAttention",
              .url = "https://arxiv.org/abs/2309.06180", .year = 2023},
    .params = specs<Params>, .compat = kCompat,
    .notes = "The paper is that of the engine, which documents this cache format; there is no paper of the format. That scales are per head is known "
             "from a test file of the engine and from third-party descriptions. Decoded values are "
             "rounded to the dtype of the cache, as a 16-bit attention kernel takes them.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .open = typed<open>, .open_side = typed<open_side>, .side_layout = typed<side_layout>,
};

}  // namespace kvatlas::methods

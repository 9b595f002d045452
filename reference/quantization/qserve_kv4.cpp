// qserve_kv4: codes of 4 or 8 bits with an fp16 scale and an fp16 zero point, not rounded to an integer, for each token and head.
// Source    arXiv 2405.04532; mit-han-lab/omniserve kernels/csrc/fused_attention/fused_attention_per_tensor/per_tensor_common/
//           applyBiasRopeUpdateKVCache.h (statements of the store), common/decoderMaskedMultiheadAttentionUtils.h (codes)
// Formula   scale = (max - min) / (2^bits - 1), zero = -min / scale of a token's head, not rounded; code = rint(x / scale + zero);
//           x' = (code - zero) * scale
// Keeps     every token; keys after RoPE; a token is coded before its own step attends
// Deviates  codes clamp at their largest (released: byte-wide saturation, then the low nibble, code=wrap); rows of equal values
//           have scale 0 (released: 0/0); prompt and new tokens attend to their own rows as stored (released: to plain rows);
//           decoding is one fused multiply-add of float32 over the rounded products (released: of fp16)
#include <array>
#include <cmath>
#include <vector>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/int_codes.hpp"
#include "reference/primitives/record_store.hpp"

namespace kvatlas::methods {
namespace {

enum class Code : std::uint8_t { clamp, wrap };
constexpr std::array<std::string_view, 2> kCodes{"clamp", "wrap"};

struct Params {
  int bits = 4;
  bool zeros = true;
  Code code = Code::clamp;
  static constexpr auto fields() {
    return std::tuple{field(&Params::bits, "bits", "bit", 4, 8, "code width: 4 or 8"),
                      flag(&Params::zeros, "zeros", "a zero point for each scale; without, codes are symmetric around 0"),
                      choice(&Params::code, "code", kCodes, "what happens to a code above the largest; wrap is the released store at 4 bits")};
  }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.bits != 4 && p.bits != 8) return cat("bits is ", p.bits, ", must be 4 or 8");
  if (p.code == Code::wrap && (p.bits != 4 || !p.zeros)) return "code is wrap, must be clamp unless bits is 4 and zeros is true";
  for (const LayerClass& c : shape.classes)
    if (p.bits == 4 && (c.kind == RowKind::kv || c.kind == RowKind::latent) && (c.k_dim % 2 != 0 || c.v_dim % 2 != 0))
      return cat("head_dim is ", c.k_dim % 2 != 0 ? c.k_dim : c.v_dim, ", must be even at 4 bits");
  return why_not_sides("qserve_kv4", shape);
}

RecordLayout layout(const Params& p, const LayerClass& c, Side side) {
  const int dim = dim_of(c, side);
  RecordLayout l{.parts = {{"codes", dim * p.bits / 8, Scope::token}, {"scales", 2, Scope::group}},
                 .format = {.kind = CodeKind::integer, .bits = p.bits, .axis = GroupAxis::channels, .group_size = dim,
                            .group_bits = p.zeros ? 32 : 16}};
  if (p.zeros) l.parts.push_back({"zeros", 2, Scope::group});
  return l;
}
using Faces = RecordFaces<Params, layout>;

float fp16(float x) { return num::round_to(Dtype::f16, x); }

void encode(const Params& p, View<const float> rows, std::span<std::byte> record) {
  const auto row = rows.row(0);
  const std::size_t code_bytes = row.size() * static_cast<std::size_t>(p.bits) / 8;
  std::vector<float> x(row.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = fp16(num::clamp(row[i], -65504.0F, 65504.0F));
  std::vector<std::uint8_t> codes(x.size());
  if (p.zeros) {
    float low = x[0], high = x[0];
    for (const float f : x) {
      low = num::min(low, f);
      high = num::max(high, f);
    }
    const float top = p.bits == 4 ? 15.0F : 255.0F;
    const float scale = fp16((high - low) / top), zero = high == low ? 0.0F : fp16(-top * low / (high - low));
    if (scale == 0.0F || !num::is_finite(zero)) {  // equal values, or a range far below the values: the lowest serves all
      put_fp16(record, code_bytes, 0.0F);
      put_fp16(record, code_bytes + 2, low);
    } else {
      const float inverse = 1.0F / scale;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const float code = num::rint(num::clamp(num::fma(x[i], inverse, zero), 0.0F, p.code == Code::wrap ? 255.0F : top));
        codes[i] = static_cast<std::uint8_t>(static_cast<unsigned>(code) & (p.bits == 4 ? 0xFU : 0xFFU));
      }
      put_fp16(record, code_bytes, scale);
      put_fp16(record, code_bytes + 2, zero);
    }
  } else {
    float largest = 0;
    for (const float f : x) largest = num::max(largest, std::fabs(f));
    const float top = p.bits == 4 ? 7.0F : 127.0F, scale = fp16(largest / top), inverse = scale == 0.0F ? 0.0F : 1.0F / scale;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const auto code = static_cast<int>(num::rint(num::clamp(x[i] * inverse, -top, top)));
      codes[i] = static_cast<std::uint8_t>(static_cast<unsigned>(code) & (p.bits == 4 ? 0xFU : 0xFFU));  // two's complement
    }
    put_fp16(record, code_bytes, scale);
  }
  num::pack(codes, p.bits, record.first(code_bytes));
}

void decode(const Params& p, std::span<const std::byte> record, View<float> rows) {
  const auto row = rows.row(0);
  const std::size_t code_bytes = row.size() * static_cast<std::size_t>(p.bits) / 8;
  std::vector<std::uint8_t> codes(row.size());
  num::unpack(record.first(code_bytes), p.bits, codes);
  const float scale = get_fp16(record, code_bytes);
  if (p.zeros) {
    const float zero = get_fp16(record, code_bytes + 2);
    // Scale 0: the zero field holds the value itself. Elsewhere the product is about the lowest value, which rounding can carry beyond fp16.
    const float offset = scale == 0.0F ? zero : fp16(num::clamp(-scale * zero, -65504.0F, 65504.0F));
    for (std::size_t i = 0; i < row.size(); ++i) row[i] = num::fma(static_cast<float>(codes[i]), scale, offset);
  } else {
    const int half = 1 << (p.bits - 1);
    for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>((codes[i] ^ half) - half) * scale;
  }
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) {
  return std::make_unique<RecordStore>(
      c.kv_heads, dim_of(c, side), side, dtype, layout(p, c, side),
      RecordCodec{.encode = [p](const RecordPlace&, View<const float> rows, std::span<std::byte> record) { encode(p, rows, record); },
                  .decode = [p](const RecordPlace&, std::span<const std::byte> record, View<float> rows) { decode(p, record, rows); }});
}

constexpr Compat kCompat[] = {
    {"code=wrap", "a narrow range far from zero gives code 16, which the released store keeps as 0: the largest value decodes as the smallest"}};

constexpr Deployable kDeployable[] = {{"omniserve", "1.0", "--kv-cache-config with int4 and zeros", "mit-han-lab/omniserve README"}};

}  // namespace

extern constinit const Method qserve_kv4{
    .slug = "qserve_kv4", .name = "QServe KV4", .family = Family::quantization,
    .paper = {.title = "QServe: W4A8KV4 Quantization and System Co-design for Efficient LLM Serving", .url = "https://arxiv.org/abs/2405.04532", .year = 2024},
    .params = specs<Params>, .compat = kCompat, .deployable = kDeployable,
    .serving = {.prefix_cache = {Works::yes, ""}, .paged_cache = {Works::yes, "a page holds codes, then scales, then zero points"},
                .chunked_prefill = {Works::partly, "released prompts attend to plain rows; a second chunk attends to coded ones"},
                .cuda_graphs = {Works::yes, ""}, .tensor_parallelism = {Works::yes, "heads are independent"},
                .speculation = {Works::yes, ""}, .multi_turn = {Works::yes, ""}},
    .notes = "SmoothAttention, a scaling of channels that is folded into the weights, is not applied: hand in keys and queries of a smoothed model. Inputs are rounded to "
             "fp16, saturating at 65504. A row of equal values stores scale 0 and the value itself in the zero field. Symmetric codes (zeros=false) are two's complement. "
             "The offset -scale * zero saturates at 65504 when it is decoded (released: infinity). Rows are coded as they come, so the prompt attends to coded rows. Decoded values are rounded to the dtype of the cache.",
    .why_not = typed<why_not>, .ledger_formula = typed<Faces::ledger_formula>, .decode_plan = typed<Faces::decode_plan>,
    .prefill_plan = typed<Faces::prefill_plan>, .open = typed<open_sides<Params, open_side>>, .open_side = typed<open_side>,
    .side_layout = typed<Faces::side_layout>,
};

}  // namespace kvatlas::methods

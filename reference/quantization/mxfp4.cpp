// mxfp4: E2M1 codes of 4 bits in blocks of 32 channels of a token, one power of two (E8M0) a block.
// Source    OCP Microscaling Formats specification 1.0, sections 5 and 6 (format, scale rule); sheet mxfp4 (layout on a cache)
// Formula   scale = 2^(floor(log2 max|x|) - 2) of 32 channels (ocp); code = E2M1(x / scale), at most 6; x' = code * scale
// Keeps     every token; keys after RoPE; a token is coded before its own step attends
// Deviates  no engine ships this cache: the layout is ours, byte j = code 2j | code 2j+1 << 4, scales apart from codes
#include <array>
#include <cmath>
#include <vector>

#include "core/errors.hpp"
#include "core/formats/e8m0.hpp"
#include "core/formats/fp4.hpp"
#include "core/formats/int_codes.hpp"
#include "reference/primitives/record_store.hpp"
#include "reference/primitives/rotation.hpp"

namespace kvatlas::methods {
namespace {

constexpr int kBlock = 32;
enum class ScaleRule : std::uint8_t { ocp, round_up };
constexpr std::array<std::string_view, 2> kScaleRules{"ocp", "round_up"};

struct Params {
  ScaleRule scale_rule = ScaleRule::ocp;
  int rotation = 0;
  static constexpr auto fields() {
    return std::tuple{choice(&Params::scale_rule, "scale_rule", kScaleRules, "ocp clips the largest value by up to a quarter; round_up never clips"),
                      field(&Params::rotation, "rotation", "channel", 0, 512, "width of Hadamard blocks before coding, a power of two; 0 = none")};
  }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if ((p.rotation & (p.rotation - 1)) != 0) return cat("rotation is ", p.rotation, ", must be 0 or a power of two");
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv && c.kind != RowKind::latent) continue;
    for (const int dim : {c.k_dim, c.kind == RowKind::kv ? c.v_dim : c.k_dim}) {
      if (dim % kBlock != 0) return cat("head_dim is ", dim, ", must be a multiple of ", kBlock, ", the block of MXFP4");
      if (p.rotation > 0 && dim % p.rotation != 0) return cat("rotation is ", p.rotation, ", must divide head_dim (", dim, ")");
    }
  }
  return why_not_sides("mxfp4", shape);
}

RecordLayout layout(const Params&, const LayerClass& c, Side side) {
  const int dim = dim_of(c, side);
  return {.parts = {{"codes", dim / 2, Scope::token}, {"scales", dim / kBlock, Scope::group}},  // E8M0
          .format = {.kind = CodeKind::fp4, .bits = 4, .axis = GroupAxis::channels, .group_size = kBlock, .group_bits = 8}};
}
using Faces = RecordFaces<Params, layout>;

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) {
  const auto dim = static_cast<std::size_t>(dim_of(c, side));
  return std::make_unique<RecordStore>(
      c.kv_heads, dim_of(c, side), side, dtype, layout(p, c, side),
      RecordCodec{.encode = [p, dim](const RecordPlace&, View<const float> rows, std::span<std::byte> record) {
                    const auto from = rows.row(0);
                    std::vector<float> row(from.begin(), from.end());
                    if (p.rotation > 0) hadamard(row, p.rotation);
                    std::vector<std::uint8_t> codes(dim);
                    for (std::size_t b = 0; b < dim / kBlock; ++b) {
                      const auto block = std::span(row).subspan(b * kBlock, kBlock);
                      float largest = 0;
                      for (const float x : block) largest = num::max(largest, std::fabs(x));
                      const std::uint8_t scale = p.scale_rule == ScaleRule::ocp ? num::e8m0_scale_floor(largest, 6.0F) : num::e8m0_scale_round_up(largest, 6.0F);
                      record[dim / 2 + b] = static_cast<std::byte>(scale);
                      // A power of two: the quotient is exact until it leaves the range of float32.
                      for (std::size_t i = 0; i < kBlock; ++i) codes[b * kBlock + i] = num::encode_e2m1(block[i] / num::decode_e8m0(scale));
                    }
                    num::pack(codes, 4, record.first(dim / 2));
                  },
                  .decode = [p, dim](const RecordPlace&, std::span<const std::byte> record, View<float> rows) {
                    const auto row = rows.row(0);
                    std::vector<std::uint8_t> codes(dim);
                    num::unpack(record.first(dim / 2), 4, codes);
                    for (std::size_t i = 0; i < dim; ++i)
                      row[i] = num::decode_e2m1(codes[i]) * num::decode_e8m0(static_cast<std::uint8_t>(record[dim / 2 + i / kBlock]));
                    if (p.rotation > 0) hadamard(row, p.rotation);
                  }});
}

}  // namespace

extern constinit const Method mxfp4{
    .slug = "mxfp4", .name = "MXFP4 KV cache", .family = Family::quantization,
    .paper = {.title = "OCP Microscaling Formats (MX) Specification 1.0",
              .url = "https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf", .year = 2023},
    .params = specs<Params>,
    .serving = {.prefix_cache = {Works::yes, ""}, .paged_cache = {Works::yes, ""}, .chunked_prefill = {Works::yes, ""},
                .cuda_graphs = {Works::yes, ""}, .tensor_parallelism = {Works::yes, "blocks lie within a head"},
                .speculation = {Works::yes, ""}, .multi_turn = {Works::yes, ""}},
    .notes = "The format on a cache is ours; the papers that use it keep the cache at 16 bits. A block of zeros stores exponent 0, which is 2^-127, and codes 0. "
             "Negative values that round to zero keep their sign. Decoded values are rounded to the dtype of the cache.",
    .why_not = typed<why_not>, .ledger_formula = typed<Faces::ledger_formula>, .decode_plan = typed<Faces::decode_plan>,
    .prefill_plan = typed<Faces::prefill_plan>, .open = typed<open_sides<Params, open_side>>, .open_side = typed<open_side>,
    .side_layout = typed<Faces::side_layout>,
};

}  // namespace kvatlas::methods

// llamacpp_kv: the cache types of llama.cpp, blocks of 32 channels with their scale in one struct, a type for each side.
// Source    ggml-org/ggml src/ggml-quants.c (codes), llama.cpp pull request 21038 (rotation of a quantized cache)
// Formula   q8_0: scale = max|x| / 127, x' = code * scale; q4_0, q5_0: scale = -m / 8, -m / 16, m the value of largest magnitude;
//           q4_1, q5_1: scale = (max - min) / 15, / 31, x' = code * scale + min; iq4_nl: code names one of 16 fixed levels; blocks of 32
// Keeps     every token; keys after RoPE; a token is coded before its own step attends
// Deviates  scores take the query as it is (the released decode kernel codes it as q8_1 first); the rotation is a fast
//           transform (released: a matrix product); decoded rows are rotated back one by one (released: query and output are)
#include <array>
#include <vector>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/ggml_blocks.hpp"
#include "reference/primitives/record_store.hpp"
#include "reference/primitives/rotation.hpp"

namespace kvatlas::methods {
namespace {

using num::GgmlType;
// The first six types of GgmlType are those that the cache offers.
constexpr std::array<std::string_view, 6> kTypes{"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"};

struct Params {
  GgmlType k_type = GgmlType::q8_0;
  GgmlType v_type = GgmlType::q8_0;
  bool rotation = true;
  static constexpr auto fields() {
    return std::tuple{choice(&Params::k_type, "k_type", kTypes, "block type of keys"),
                      choice(&Params::v_type, "v_type", kTypes, "block type of values"),
                      flag(&Params::rotation, "rotation", "Hadamard rotation before coding where head_dim is a multiple of 64; released: on")};
  }
};

GgmlType type_of(const Params& p, Side side) { return side == Side::key ? p.k_type : p.v_type; }

/// Values of one Hadamard block, 0 where the row is not rotated.
int rotation_block(const Params& p, Side side, int dim) {
  if (!p.rotation || dim % 64 != 0) return 0;
  return side == Side::key ? power_of_two_in(dim) : 64;
}

std::optional<std::string> why_not(const Params&, const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv && c.kind != RowKind::latent) continue;
    for (const int dim : {c.k_dim, c.kind == RowKind::kv ? c.v_dim : c.k_dim})
      if (dim % 32 != 0) return cat("head_dim is ", dim, ", must be a multiple of 32: a block has 32 values");
  }
  return why_not_sides("llamacpp_kv", shape);
}

RecordLayout layout(const Params& p, const LayerClass& c, Side side) {
  const num::GgmlShape block = num::ggml_shape(type_of(p, side));
  const bool minimum = type_of(p, side) == GgmlType::q4_1 || type_of(p, side) == GgmlType::q5_1;
  const int metadata = minimum ? 32 : 16;
  return {.parts = {{"blocks", std::int64_t{dim_of(c, side)} / block.values * block.bytes, Scope::token}},
          .format = {.kind = type_of(p, side) == GgmlType::iq4_nl ? CodeKind::table : CodeKind::integer,
                     .bits = (8 * block.bytes - metadata) / block.values, .axis = GroupAxis::channels,
                     .group_size = block.values, .group_bits = metadata}};
}

using Faces = RecordFaces<Params, layout>;

/// The released graph rotates query, key, value and output by a small matrix product each.
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan = record_decode_plan(shape, h, Faces::of(p));
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv && c.kind != RowKind::latent) continue;
    for (const Side side : {Side::key, Side::value}) {
      const int block = rotation_block(p, side, dim_of(c, side));
      if (block > 0 && (side == Side::key || c.kind == RowKind::kv))
        for (const int heads : {c.q_heads, c.kv_heads}) add_rotation(plan, c, shape.dtype, h, heads, dim_of(c, side), block);
    }
  }
  return plan;
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) {
  const GgmlType type = type_of(p, side);
  const int rotated = rotation_block(p, side, dim_of(c, side));
  return std::make_unique<RecordStore>(
      c.kv_heads, dim_of(c, side), side, dtype, layout(p, c, side),
      RecordCodec{.encode = [=](const RecordPlace&, View<const float> rows, std::span<std::byte> record) {
                    const auto from = rows.row(0);
                    std::vector<float> row(from.begin(), from.end());
                    if (rotated > 0) hadamard(row, rotated);
                    for (float& x : row) x = num::clamp(x, -65504.0F, 65504.0F);  // scales and minima are fp16
                    num::encode_ggml(type, row, record);
                  },
                  .decode = [=](const RecordPlace&, std::span<const std::byte> record, View<float> rows) {
                    num::decode_ggml(type, record, rows.row(0));
                    if (rotated > 0) hadamard(rows.row(0), rotated);
                  }});
}

constexpr Deployable kDeployable[] = {
    {"llama.cpp", "b3000", "--cache-type-k TYPE --cache-type-v TYPE; quantized values need --flash-attn", "llama.cpp server documentation"}};

}  // namespace

extern constinit const Method llamacpp_kv{
    .slug = "llamacpp_kv", .name = "llama.cpp cache types", .family = Family::quantization,
    .paper = {.title = "llama.cpp: LLM inference in C/C++", .url = "https://github.com/ggml-org/llama.cpp", .year = 2023},
    .params = specs<Params>, .deployable = kDeployable,
    .serving = {.prefix_cache = {Works::yes, ""}, .paged_cache = {Works::yes, ""}, .chunked_prefill = {Works::yes, ""},
                .cuda_graphs = {Works::yes, ""}, .tensor_parallelism = {Works::yes, "blocks lie within a head"},
                .speculation = {Works::yes, ""}, .multi_turn = {Works::yes, ""}},
    .notes = "There is no paper; the repository documents the types. Rotation acts where head_dim is a multiple of 64, on keys in blocks of the largest "
             "power of two in head_dim, on values in blocks of 64, and is silent elsewhere, as released (rotation=false is LLAMA_ATTN_ROT_DISABLE=1 and every release before April 2026). Rows are clamped to 65504 before they are coded, so that "
             "fp16 scales stay finite; ggml stores infinity there. Decoded rows are rounded to the dtype of the cache.",
    .why_not = typed<why_not>, .ledger_formula = typed<Faces::ledger_formula>, .decode_plan = typed<Faces::decode_plan>,
    .prefill_plan = typed<Faces::prefill_plan>, .released_decode_plan = typed<released_decode_plan>,
    .open = typed<open_sides<Params, open_side>>, .open_side = typed<open_side>, .side_layout = typed<Faces::side_layout>,
};

}  // namespace kvatlas::methods

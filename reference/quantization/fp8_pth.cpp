// fp8_pth: one E4M3 byte a value and one float32 scale for each token and kv head.
// Source    vLLM's dynamic per-token-head cache: scale = max(absmax / 448, 1e-6), code = E4M3(x * (1 / scale))
// Formula   scale = max(max|x| / 448, 1e-6) of a token's head; code = E4M3(x * (1 / scale)); x' = code * scale
// Keeps     every token; keys after RoPE; a token is coded before its own step attends
// Deviates  nowhere
#include <array>
#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/fp8.hpp"
#include "reference/primitives/record_store.hpp"

namespace kvatlas::methods {
namespace {

enum class Format : std::uint8_t { e4m3, e5m2 };
constexpr std::array<std::string_view, 2> kFormats{"e4m3", "e5m2"};

struct Params {
  Format format = Format::e4m3;
  static constexpr auto fields() {
    return std::tuple{choice(&Params::format, "format", kFormats, "number format of a stored value; released: e4m3")};
  }
};

std::optional<std::string> why_not(const Params&, const CacheShape& shape) { return why_not_sides("fp8_pth", shape); }

RecordLayout layout(const Params&, const LayerClass& c, Side side) {
  const int dim = dim_of(c, side);
  return {.parts = {{"codes", dim, Scope::token}, {"scales", 4, Scope::group}},  // float32
          .format = {.kind = CodeKind::fp8, .bits = 8, .axis = GroupAxis::channels, .group_size = dim, .group_bits = 32}};
}
using Faces = RecordFaces<Params, layout>;

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) {
  const bool e4m3 = p.format == Format::e4m3;
  const auto encode = e4m3 ? &num::encode_e4m3 : &num::encode_e5m2;
  const auto decode = e4m3 ? &num::decode_e4m3 : &num::decode_e5m2;
  const float top = e4m3 ? 448.0F : 57344.0F;
  return std::make_unique<RecordStore>(
      c.kv_heads, dim_of(c, side), side, dtype, layout(p, c, side),
      RecordCodec{.encode = [=](const RecordPlace&, View<const float> rows, std::span<std::byte> record) {
                    const auto row = rows.row(0);
                    float largest = 0;
                    for (const float x : row) largest = num::max(largest, std::fabs(x));
                    const float scale = num::max(largest / top, 1e-6F), inverse = 1.0F / scale;
                    for (std::size_t i = 0; i < row.size(); ++i) record[i] = static_cast<std::byte>(encode(row[i] * inverse));
                    num::store(Dtype::f32, std::span(&scale, 1), record.subspan(row.size()));
                  },
                  .decode = [=](const RecordPlace&, std::span<const std::byte> record, View<float> rows) {
                    const auto row = rows.row(0);
                    float scale = 0;
                    num::load(Dtype::f32, record.subspan(row.size()), std::span(&scale, 1));
                    for (std::size_t i = 0; i < row.size(); ++i) row[i] = decode(static_cast<std::uint8_t>(record[i])) * scale;
                  }});
}

}  // namespace

extern constinit const Method fp8_pth{
    .slug = "fp8_pth", .name = "FP8 per token and head", .family = Family::quantization,
    .paper = {.title = "FP8 Formats for Deep Learning", .url = "https://arxiv.org/abs/2209.05433", .year = 2022},
    .params = specs<Params>,
    .serving = {.prefix_cache = {Works::yes, ""}, .paged_cache = {Works::yes, "scales lie beside the page"}, .chunked_prefill = {Works::yes, ""},
                .cuda_graphs = {Works::yes, ""}, .tensor_parallelism = {Works::yes, "heads are independent"},
                .speculation = {Works::yes, ""}, .multi_turn = {Works::yes, ""}},
    .notes = "The paper is that of the number format; the engine documents the cache and stores E4M3 alone: format=e5m2 is for comparison. That scales are per head is known "
             "from a test file of the engine and from third-party descriptions. Decoded values are rounded to the dtype of the cache, as a 16-bit "
             "attention kernel takes them.",
    .why_not = typed<why_not>, .ledger_formula = typed<Faces::ledger_formula>, .decode_plan = typed<Faces::decode_plan>,
    .prefill_plan = typed<Faces::prefill_plan>, .open = typed<open_sides<Params, open_side>>, .open_side = typed<open_side>,
    .side_layout = typed<Faces::side_layout>,
};

}  // namespace kvatlas::methods

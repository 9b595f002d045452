// nvfp4_kv: E2M1 codes of 4 bits in blocks of 16 channels of a token, an E4M3 scale a block, one float32 scale for the keys and
// one for the values of a layer.
// Source    flashinfer-ai/flashinfer include/flashinfer/page.cuh (portable append: block scale = E4M3(absmax / (6 * global)), code =
//           E2M1(x * 1 / (block scale * global))), csrc/fp4_kv_quantization.cu; TensorRT-LLM stores the same codes
// Formula   block scale s = E4M3(max|x| / (6 g)) of 16 channels, g the side's scale; code = E2M1(x / (s g)); x' = code * s * g
// Keeps     every token; keys after RoPE; a token is coded before its own step attends
// Deviates  divisions are exact (the tensor-core path takes approximate reciprocals); values' scales are linear (TensorRT-LLM
//           interleaves them by four tokens, the same bytes)
#include <array>
#include <cmath>
#include <vector>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/fp4.hpp"
#include "core/formats/fp8.hpp"
#include "core/formats/int_codes.hpp"
#include "reference/primitives/record_store.hpp"

namespace kvatlas::methods {
namespace {

constexpr int kBlock = 16;
enum class Calibration : std::uint8_t { none, absmax_448, absmax_2688 };
constexpr std::array<std::string_view, 3> kCalibrations{"none", "absmax_448", "absmax_2688"};

struct Params {
  double k_scale = 1.0;
  double v_scale = 1.0;
  Calibration calibrate = Calibration::none;
  static constexpr auto fields() {
    return std::tuple{field(&Params::k_scale, "k_scale", "", 0.0001, 256, "global scale of keys: a value is code * block scale * global scale"),
                      field(&Params::v_scale, "v_scale", "", 0.0001, 256, "global scale of values"),
                      choice(&Params::calibrate, "calibrate", kCalibrations,
                             "take global scales from a layer's first call: absmax over 448 (cache convention) or over 2688 (weight convention)")};
  }
};

std::optional<std::string> why_not(const Params&, const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv && c.kind != RowKind::latent) continue;
    for (const int dim : {c.k_dim, c.kind == RowKind::kv ? c.v_dim : c.k_dim})
      if (dim % kBlock != 0) return cat("head_dim is ", dim, ", must be a multiple of ", kBlock, ", the block of NVFP4");
  }
  return why_not_sides("nvfp4_kv", shape);
}

RecordLayout layout(const Params& p, const LayerClass& c, Side side) {
  const int dim = dim_of(c, side);
  return {.parts = {{"codes", dim / 2, Scope::token}, {"scales", dim / kBlock, Scope::group}},  // E4M3
          .state = {{"global_scale", 4, Scope::layer}},                                         // float32
          .own_state = p.calibrate != Calibration::none,
          .format = {.kind = CodeKind::fp4, .bits = 4, .axis = GroupAxis::channels, .group_size = kBlock, .group_bits = 8}};
}
using Faces = RecordFaces<Params, layout>;

float global_of(std::span<const std::byte> state) {
  float scale = 0;
  num::load(Dtype::f32, state, std::span(&scale, 1));
  return scale;
}

void encode(const RecordPlace& at, View<const float> rows, std::span<std::byte> record) {
  const auto row = rows.row(0);
  const float global = global_of(at.state);
  std::vector<std::uint8_t> codes(row.size());
  for (std::size_t b = 0; b < row.size() / kBlock; ++b) {
    const auto block = row.subspan(b * kBlock, kBlock);
    float largest = 0;
    for (const float x : block) largest = num::max(largest, std::fabs(x));
    const std::uint8_t scale = num::encode_ue4m3(largest / (6.0F * global));
    const float step = num::decode_ue4m3(scale) * global, inverse = step == 0.0F ? 0.0F : 1.0F / step;
    record[row.size() / 2 + b] = static_cast<std::byte>(scale);
    for (std::size_t i = 0; i < kBlock; ++i) codes[b * kBlock + i] = num::encode_e2m1(block[i] * inverse);
  }
  num::pack(codes, 4, record.first(row.size() / 2));
}

void decode(const RecordPlace& at, std::span<const std::byte> record, View<float> rows) {
  const auto row = rows.row(0);
  const float global = global_of(at.state);
  std::vector<std::uint8_t> codes(row.size());
  num::unpack(record.first(row.size() / 2), 4, codes);
  for (std::size_t i = 0; i < row.size(); ++i)
    row[i] = num::decode_e2m1(codes[i]) * num::decode_ue4m3(static_cast<std::uint8_t>(record[row.size() / 2 + i / kBlock])) * global;
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) {
  RecordCodec codec{.encode = encode, .decode = decode};
  codec.initial_state.resize(4);
  const auto global = static_cast<float>(side == Side::key ? p.k_scale : p.v_scale);
  num::store(Dtype::f32, std::span(&global, 1), codec.initial_state);
  if (p.calibrate != Calibration::none)
    codec.start = [over = p.calibrate == Calibration::absmax_448 ? 448.0F : 2688.0F](View<const float> first, std::span<std::byte> state) {
      float largest = 0;
      for (std::int64_t h = 0; h < first.dim(0); ++h)
        for (std::int64_t i = 0; i < first.dim(1); ++i)
          for (const float x : first.row(h, i)) largest = num::max(largest, std::fabs(x));
      float scale = largest / over;
      if (scale < 0x1p-126F) scale = 1.0F;  // nothing to scale by
      num::store(Dtype::f32, std::span(&scale, 1), state);
    };
  codec.state_fault = [](std::span<const std::byte> state) -> std::optional<std::string> {
    const float scale = global_of(state);
    if (num::is_finite(scale) && scale > 0) return std::nullopt;
    return cat("global scale is ", scale, ", must be finite and above 0");
  };
  return std::make_unique<RecordStore>(c.kv_heads, dim_of(c, side), side, dtype, layout(p, c, side), std::move(codec));
}

constexpr Deployable kDeployable[] = {
    {"trtllm", "1.0", "kv_cache_config.dtype nvfp4; quantize.py --kv_cache_dtype nvfp4", "TensorRT-LLM documentation, quantization; needs Blackwell"}};

}  // namespace

extern constinit const Method nvfp4_kv{
    .slug = "nvfp4_kv", .name = "NVFP4 KV cache", .family = Family::quantization,
    .paper = {.title = "Pretraining Large Language Models with NVFP4", .url = "https://arxiv.org/abs/2509.25149", .year = 2025},
    .params = specs<Params>, .deployable = kDeployable,
    .serving = {.prefix_cache = {Works::yes, ""}, .paged_cache = {Works::yes, ""},
                .chunked_prefill = {Works::partly, "calibrate takes global scales from the first chunk alone"},
                .cuda_graphs = {Works::yes, ""}, .tensor_parallelism = {Works::yes, "blocks lie within a head"},
                .speculation = {Works::yes, ""}, .multi_turn = {Works::yes, ""}},
    .notes = "The paper is that of the format; engines document the cache. The global scale is a factor of decoding; some interfaces pass its inverse. Blocks whose scale "
             "rounds to zero decode to zeros, and negative values that round to zero keep their sign. Decoded values are rounded to the dtype of the cache.",
    .why_not = typed<why_not>, .ledger_formula = typed<Faces::ledger_formula>, .decode_plan = typed<Faces::decode_plan>,
    .prefill_plan = typed<Faces::prefill_plan>, .open = typed<open_sides<Params, open_side>>, .open_side = typed<open_side>,
    .side_layout = typed<Faces::side_layout>,
};

}  // namespace kvatlas::methods

// turboquant: a rotated unit vector coded by a fixed codebook of levels, its norm beside it; perhaps a sign sketch of the rest.
// Source    arXiv 2504.19874, algorithms 1 (levels) and 2 (levels and sketch); vLLM pull request 38479: model_executor/layers/
//           quantization/turboquant/{config,centroids}.py, v1/attention/ops/triton_turboquant_{store,decode}.py (variant=vllm)
// Formula   n = ||x||, y = R x / n, R random orthogonal (vllm: Hadamard); code = the nearest of 2^b levels, best for N(0, 1/d); x' = n R^T level[code];
//           sketch: one bit less, and sign(S r) with ||r|| of what is left: <q, x> ~ <q, x'> + sqrt(pi/2) / d * ||r|| <S q, sign(S r)>
// Keeps     every token; keys after RoPE; a token is coded before its own step attends
// Deviates  no official code of the paper: levels are those of its Gaussian limit, norms fp16; the paper's split of channels into
//           outliers and others is not offered. Decoded keys are rotated back one by one (released: the query is rotated)
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/fp8.hpp"
#include "core/formats/int_codes.hpp"
#include "reference/primitives/lloyd_max.hpp"
#include "reference/primitives/record_store.hpp"
#include "reference/primitives/rotation.hpp"

namespace kvatlas::methods {
namespace {

enum class Variant : std::uint8_t { paper, vllm };
constexpr std::array<std::string_view, 2> kVariants{"paper", "vllm"};

struct Params {
  Variant variant = Variant::paper;
  int k_bits = 3;
  int v_bits = 3;
  bool sketch = false;
  bool norm_correction = false;
  int seed = 42;
  static constexpr auto fields() {
    return std::tuple{
        choice(&Params::variant, "variant", kVariants, "paper: both sides rotated by a random matrix; vllm: keys by a Hadamard matrix, values min-max codes"),
        field(&Params::k_bits, "k_bits", "bit", 1, 8, "bits of a key channel: 1 to 4; 8 with vllm is E4M3 without a scale"),
        field(&Params::v_bits, "v_bits", "bit", 1, 8, "bits of a value channel: 1 to 4 with paper, 2 to 8 with vllm"),
        flag(&Params::sketch, "sketch", "paper's inner-product form of keys: one of k_bits is the sign of a projection of the residual"),
        flag(&Params::norm_correction, "norm_correction", "levels of a key are divided by their norm before use"),
        field(&Params::seed, "seed", "", 0, 65535, "of the random matrices")};
  }
};

bool levels_of_paper(const Params& p) { return p.variant == Variant::paper; }
bool fp8_keys(const Params& p) { return p.variant == Variant::vllm && p.k_bits == 8; }
bool sketched(const Params& p, Side side) { return p.sketch && side == Side::key; }
int level_bits(const Params& p, Side side) { return (side == Side::key ? p.k_bits : p.v_bits) - (sketched(p, side) ? 1 : 0); }

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.k_bits > 4 && !fp8_keys(p)) return cat("k_bits is ", p.k_bits, ", must be at most 4", p.variant == Variant::vllm ? ", or 8" : "");
  if (levels_of_paper(p) && p.v_bits > 4) return cat("v_bits is ", p.v_bits, ", must be at most 4 in the paper's form");
  if (!levels_of_paper(p) && p.v_bits < 2) return cat("v_bits is ", p.v_bits, ", must be at least 2 in vLLM's form");
  if (!levels_of_paper(p) && p.k_bits < 2) return cat("k_bits is ", p.k_bits, ", must be at least 2 in vLLM's form");
  if (p.sketch && !levels_of_paper(p)) return "sketch is true, must be false in vLLM's form, which leaves it out";
  if (p.sketch && p.k_bits < 2) return cat("k_bits is ", p.k_bits, ", must be at least 2: the sketch takes one bit");
  if (p.norm_correction && fp8_keys(p)) return "norm_correction is true, must be false with k_bits=8, whose keys have no norm";
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    if (!levels_of_paper(p) && (c.k_dim < 16 || power_of_two_in(c.k_dim) != c.k_dim || c.v_dim % 8 != 0))
      return cat("head_dim is ", c.k_dim, ", must be a power of two from 16 on in vLLM's form");
    if (levels_of_paper(p) && (c.k_dim % 8 != 0 || c.v_dim % 8 != 0)) return cat("head_dim is ", c.k_dim, ", must be a multiple of 8");
  }
  return why_not_sides("turboquant", shape, {.latent = false});
}

RecordLayout layout(const Params& p, const LayerClass& c, Side side) {
  const int dim = dim_of(c, side), bits = level_bits(p, side);
  if (side == Side::key && fp8_keys(p)) return {.parts = {{"codes", dim, Scope::token}}, .format = {.kind = CodeKind::fp8, .bits = 8}};
  const std::int64_t code_bytes = num::packed_bytes(dim, bits).value;
  if (side == Side::value && !levels_of_paper(p))
    return {.parts = {{"codes", code_bytes, Scope::token}, {"scales", 2, Scope::group}, {"zeros", 2, Scope::group}},
            .format = {.kind = CodeKind::integer, .bits = bits, .axis = GroupAxis::channels, .group_size = dim, .group_bits = 32}};
  RecordLayout l{.parts = {{"codes", code_bytes, Scope::token}, {"norms", 2, Scope::group}},
                 .format = {.kind = CodeKind::table, .bits = bits, .axis = GroupAxis::channels, .group_size = dim, .group_bits = 16}};
  if (sketched(p, side)) {
    l.parts.push_back({"signs", dim / 8, Scope::token});
    l.parts.push_back({"residual_norms", 2, Scope::group});
    l.format.bits += 1;
    l.format.group_bits += 16;
  }
  return l;
}
using Faces = RecordFaces<Params, layout>;

/// Every step rotates its queries, new keys and (paper) new values and outputs; the ideal plan folds that into the projections'
/// epilogue. The released store and decode kernels rotate by a product of [head_dim, head_dim].
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan = record_decode_plan(shape, h, Faces::of(p));
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv || fp8_keys(p)) continue;
    for (const int heads : {c.q_heads, c.kv_heads}) add_rotation(plan, c, shape.dtype, h, heads, c.k_dim, c.k_dim);
    if (levels_of_paper(p))
      for (const int heads : {c.q_heads, c.kv_heads}) add_rotation(plan, c, shape.dtype, h, heads, c.v_dim, c.v_dim);
  }
  return plan;
}

/// Levels of a unit vector's rotated channels, the thresholds between them, and the rotation.
struct Coder {
  std::vector<float> levels, between;
  Array rotation, projection;  // empty rotation: Hadamard
  int bits = 0;
  bool sketch = false, correct = false, vllm = false;

  Coder(const Params& p, Side side, int dim) : bits(level_bits(p, side)), sketch(sketched(p, side)), correct(p.norm_correction && side == Side::key), vllm(!levels_of_paper(p)) {
    if (vllm) {
      levels = lloyd_levels(dim, bits);
    } else {
      const float deviation = 1.0F / std::sqrt(static_cast<float>(dim));
      for (const float unit : gaussian_levels(bits)) levels.push_back(unit * deviation);
      rotation = random_rotation(dim, {.seed = static_cast<std::uint64_t>(p.seed)});
    }
    between = midpoints(levels);
    if (!sketch) return;
    projection = Array({dim, dim});
    const RandomStream stream{.seed = static_cast<std::uint64_t>(p.seed), .step = 1};
    for (std::size_t i = 0; i < projection.values().size(); ++i) projection.values()[i] = static_cast<float>(random_normal(stream, i));
  }

  std::vector<float> turned(std::span<const float> unit) const {
    std::vector<float> y(unit.begin(), unit.end());
    if (vllm) {
      hadamard(y, static_cast<int>(y.size()));
    } else {
      rotate(rotation.view(), unit, y);
    }
    return y;
  }
  /// The unit vector that codes stand for.
  std::vector<float> unit_of(std::span<const std::uint8_t> codes) const {
    std::vector<float> y(codes.size()), x(codes.size());
    for (std::size_t i = 0; i < y.size(); ++i) y[i] = levels[codes[i]];
    if (correct) {
      const float norm = std::sqrt(num::lane_dot(y, y) + 1e-16F);
      for (float& f : y) f = f / norm;
    }
    if (vllm) {
      hadamard(y, static_cast<int>(y.size()));
      return y;
    }
    rotate_back(rotation.view(), y, x);
    return x;
  }

  void encode(std::span<const float> row, std::span<std::byte> record) const {
    const auto code_bytes = static_cast<std::size_t>(num::packed_bytes(static_cast<std::int64_t>(row.size()), bits).value);
    std::vector<float> x(row.size());
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = num::clamp(row[i], -65504.0F, 65504.0F);  // norms are fp16
    const float norm = std::sqrt(num::lane_dot(x, x)), divisor = vllm ? norm + 1e-8F : norm == 0.0F ? 1.0F : norm;
    for (float& f : x) f = f / divisor;
    const std::vector<float> y = turned(x);
    std::vector<std::uint8_t> codes(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) codes[i] = level_of(between, y[i]);
    num::pack(codes, bits, record.first(code_bytes));
    put_fp16(record, code_bytes, norm);
    if (!sketch) return;
    const std::vector<float> near = unit_of(codes);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = norm == 0.0F ? 0.0F : x[i] - near[i];
    std::vector<std::uint8_t> signs(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) signs[i] = num::lane_dot(projection.view().row(static_cast<std::int64_t>(i)), x) > 0.0F ? 1 : 0;
    num::pack(signs, 1, record.subspan(code_bytes + 2, x.size() / 8));
    put_fp16(record, code_bytes + 2 + x.size() / 8, std::sqrt(num::lane_dot(x, x)));
  }

  void decode(std::span<const std::byte> record, std::span<float> row) const {
    const auto code_bytes = static_cast<std::size_t>(num::packed_bytes(static_cast<std::int64_t>(row.size()), bits).value);
    std::vector<std::uint8_t> codes(row.size());
    num::unpack(record.first(code_bytes), bits, codes);
    std::vector<float> x = unit_of(codes);
    if (sketch) {
      num::unpack(record.subspan(code_bytes + 2, row.size() / 8), 1, codes);
      std::vector<float> signs(row.size()), estimate(row.size());
      for (std::size_t i = 0; i < signs.size(); ++i) signs[i] = codes[i] != 0 ? 1.0F : -1.0F;
      rotate_back(projection.view(), signs, estimate);
      const float factor = 1.2533141F / static_cast<float>(row.size()) * get_fp16(record, code_bytes + 2 + row.size() / 8);  // sqrt(pi / 2)
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = num::fma(factor, estimate[i], x[i]);
    }
    const float norm = get_fp16(record, code_bytes);
    for (std::size_t i = 0; i < x.size(); ++i) row[i] = x[i] * norm;
  }
};

/// vLLM's values: codes from the float32 scale, scale and minimum stored as fp16.
void encode_range(int bits, std::span<const float> row, std::span<std::byte> record) {
  float low = 65504.0F, high = -65504.0F;
  std::vector<float> x(row.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = num::clamp(row[i], -65504.0F, 65504.0F);
    low = num::min(low, x[i]);
    high = num::max(high, x[i]);
  }
  const float top = static_cast<float>((1 << bits) - 1), scale = num::max((high - low) / top, 1e-8F);
  std::vector<std::uint8_t> codes(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) codes[i] = static_cast<std::uint8_t>(num::clamp((x[i] - low) / scale + 0.5F, 0.0F, top));
  const auto code_bytes = static_cast<std::size_t>(num::packed_bytes(static_cast<std::int64_t>(x.size()), bits).value);
  num::pack(codes, bits, record.first(code_bytes));
  put_fp16(record, code_bytes, scale);
  put_fp16(record, code_bytes + 2, low);
}

void decode_range(int bits, std::span<const std::byte> record, std::span<float> row) {
  const auto code_bytes = static_cast<std::size_t>(num::packed_bytes(static_cast<std::int64_t>(row.size()), bits).value);
  std::vector<std::uint8_t> codes(row.size());
  num::unpack(record.first(code_bytes), bits, codes);
  for (std::size_t i = 0; i < row.size(); ++i)
    row[i] = num::fma(static_cast<float>(codes[i]), get_fp16(record, code_bytes), get_fp16(record, code_bytes + 2));
}

RecordCodec codec_of(const Params& p, Side side, int dim) {
  using Rows = View<const float>;
  if (side == Side::key && fp8_keys(p))
    return {.encode = [](const RecordPlace&, Rows rows, std::span<std::byte> record) {
              for (std::size_t i = 0; i < record.size(); ++i) record[i] = static_cast<std::byte>(num::encode_e4m3(rows.row(0)[i]));
            },
            .decode = [](const RecordPlace&, std::span<const std::byte> record, View<float> rows) {
              for (std::size_t i = 0; i < record.size(); ++i) rows.row(0)[i] = num::decode_e4m3(static_cast<std::uint8_t>(record[i]));
            }};
  if (side == Side::value && !levels_of_paper(p))
    return {.encode = [bits = p.v_bits](const RecordPlace&, Rows rows, std::span<std::byte> record) { encode_range(bits, rows.row(0), record); },
            .decode = [bits = p.v_bits](const RecordPlace&, std::span<const std::byte> record, View<float> rows) { decode_range(bits, record, rows.row(0)); }};
  const auto coder = std::make_shared<const Coder>(p, side, dim);
  return {.encode = [coder](const RecordPlace&, Rows rows, std::span<std::byte> record) { coder->encode(rows.row(0), record); },
          .decode = [coder](const RecordPlace&, std::span<const std::byte> record, View<float> rows) { coder->decode(record, rows.row(0)); }};
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) {
  return std::make_unique<RecordStore>(c.kv_heads, dim_of(c, side), side, dtype, layout(p, c, side), codec_of(p, side, dim_of(c, side)));
}

constexpr Deployable kDeployable[] = {
    {"vllm", "main, 2026", "--kv-cache-dtype turboquant_k8v4 (turboquant_4bit_nc, turboquant_k3v4_nc, turboquant_3bit_nc)", "vLLM pull request 38479"}};

}  // namespace

extern constinit const Method turboquant{
    .slug = "turboquant", .name = "TurboQuant", .family = Family::quantization,
    .paper = {.title = "TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate", .url = "https://arxiv.org/abs/2504.19874", .year = 2025},
    .params = specs<Params>, .deployable = kDeployable,
    .serving = {.prefix_cache = {Works::yes, ""}, .paged_cache = {Works::yes, ""}, .chunked_prefill = {Works::yes, ""},
                .cuda_graphs = {Works::yes, ""}, .tensor_parallelism = {Works::yes, "heads are independent"},
                .speculation = {Works::yes, ""}, .multi_turn = {Works::yes, ""}},
    .notes = "Three bits are an assumed default: the paper names 2.5 and 3.5, vLLM four presets. The random matrices follow from the seed and are no state of a cache. vLLM's presets keep the first and the last two layers plain: a recipe's rule by layer says "
             "so. Its 8-bit keys on GPUs before compute capability 8.9 use another format than E4M3; not offered. The paper's 2.5 and 3.5 bit settings mix two widths over channels "
             "that it chooses by data it does not name. Inputs are clamped to 65504, norms are fp16, decoded values are rounded to the dtype of the cache.",
    .why_not = typed<why_not>, .ledger_formula = typed<Faces::ledger_formula>, .decode_plan = typed<Faces::decode_plan>,
    .prefill_plan = typed<Faces::prefill_plan>, .released_decode_plan = typed<released_decode_plan>,
    .open = typed<open_sides<Params, open_side>>, .open_side = typed<open_side>, .side_layout = typed<Faces::side_layout>,
};

}  // namespace kvatlas::methods

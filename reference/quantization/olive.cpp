// olive: 4-bit codes in pairs of channels; an outlier takes the code of its neighbour as a mark and gets a float code of its own.
// Source    arXiv 2304.07493, sections 3 and 4; clevercool/ANT-Quantization olive_quantization/antquant/quant_modules.py (grids,
//           scale search, victims). The method is for weights and activations: on a cache it is ours
// Formula   scale by least squared error; normal values 4 n, n = -7 .. 7; in a pair of channels an outlier takes the code of its neighbour, which
//           becomes 0, and is a float of its own range; x' = value * scale
// Keeps     every token; keys after RoPE; a token is coded before its own step attends
// Deviates  of two outliers in a pair the even one stays, as in the released code (paper: the larger); flint grids are not offered
#include <array>
#include <cmath>
#include <vector>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/int_codes.hpp"
#include "reference/primitives/record_store.hpp"

namespace kvatlas::methods {
namespace {

enum class Scale : std::uint8_t { head, token };
constexpr std::array<std::string_view, 2> kScales{"head", "token"};

struct Params {
  Scale scale = Scale::head;
  double sigmas = 3.0;
  int search_low = 50;
  int search_high = 150;
  static constexpr auto fields() {
    return std::tuple{choice(&Params::scale, "scale", kScales, "who shares a scale: a head (float32, from the first call) or one token of a head (fp16)"),
                      field(&Params::sigmas, "sigmas", "", 0.5, 8, "normal values reach this many deviations from the mean before the search"),
                      field(&Params::search_low, "search_low", "%", 10, 400, "first share of that reach that the search tries"),
                      field(&Params::search_high, "search_high", "%", 10, 400, "last share that it tries; steps of 2")};
  }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.search_high < p.search_low) return cat("search_high is ", p.search_high, ", must be at least search_low (", p.search_low, ")");
  for (const LayerClass& c : shape.classes)
    if ((c.kind == RowKind::kv || c.kind == RowKind::latent) && (c.k_dim % 2 != 0 || c.v_dim % 2 != 0))
      return cat("head_dim is ", c.k_dim % 2 != 0 ? c.k_dim : c.v_dim, ", must be even: codes come in pairs");
  return why_not_sides("olive", shape);
}

RecordLayout layout(const Params& p, const LayerClass& c, Side side) {
  const int dim = dim_of(c, side);
  RecordLayout l{.parts = {{"codes", dim / 2, Scope::token}},
                 .format = {.kind = CodeKind::table, .bits = 4, .axis = GroupAxis::channels}};
  if (p.scale == Scale::head) {
    l.state.push_back({"scales", std::int64_t{4} * c.kv_heads, Scope::head});
    l.own_state = true;
  } else {
    l.parts.push_back({"scales", 2, Scope::group});
    l.format.group_size = dim;
    l.format.group_bits = 16;
  }
  return l;
}
using Faces = RecordFaces<Params, layout>;

constexpr float kTopNormal = 28.0F;           // normal values are 4 * (-7 .. 7)
constexpr std::uint8_t kVictim = 0x8;         // the code -8 says that the other of its pair is an outlier
constexpr std::array<float, 7> kOutliers{48, 64, 96, 128, 192, 256, 384};  // sign, two exponent bits, one mantissa bit: 2^(5+e) (1 + m/2)

/// Index 0 .. 28 of the nearest of 15 normal and 14 outlier values, each kind ascending, normal ones first; of equals the last.
int nearest(float x) {
  constexpr float kFirst = (kTopNormal + kOutliers[0]) / 2;
  // Steps of 4 around 0: exact in float64, a half rounds up.
  if (x > -kFirst && x < kFirst) return 7 + std::clamp(static_cast<int>(std::floor(static_cast<double>(x) * 0.25 + 0.5)), -7, 7);
  const float magnitude = std::fabs(x);
  int above = 0;  // outliers passed; of equals the larger value, which is the smaller magnitude of negative ones
  for (std::size_t i = 0; i + 1 < kOutliers.size(); ++i) {
    const float middle = (kOutliers[i] + kOutliers[i + 1]) / 2;
    above += x > 0 ? magnitude >= middle : magnitude > middle;
  }
  return x > 0 ? 22 + above : 21 - above;
}

std::uint8_t code_of(int index) {
  if (index < 15) return static_cast<std::uint8_t>((index - 7) & 0xF);
  const int magnitude = index < 22 ? 21 - index : index - 22;  // 0 .. 6 is exponent and mantissa 1 .. 7
  return static_cast<std::uint8_t>((index < 22 ? 8 : 0) | (magnitude + 1));
}

/// Nibbles of a pair, even channel low.
std::uint8_t pair_code(float even, float odd) {
  const int e = nearest(even), o = nearest(odd);
  if (e >= 15) return static_cast<std::uint8_t>(code_of(e) | kVictim << 4);
  if (o >= 15) return static_cast<std::uint8_t>(kVictim | code_of(o) << 4);
  return static_cast<std::uint8_t>(code_of(e) | code_of(o) << 4);
}

float normal_of(unsigned code) { return 4.0F * static_cast<float>((static_cast<int>(code) ^ 8) - 8); }
float outlier_of(unsigned code) {
  const unsigned e = code >> 1 & 3U, m = code & 1U;
  const float magnitude = static_cast<float>(32U << e) * (m != 0 ? 1.5F : 1.0F);
  return (code & 8U) != 0 ? -magnitude : magnitude;
}
struct Pair {
  float even, odd;
};
Pair pair_of(unsigned byte) {
  const unsigned low = byte & 0xFU, high = byte >> 4;
  if (low == kVictim) return {0.0F, outlier_of(high)};
  if (high == kVictim) return {outlier_of(low), 0.0F};
  return {normal_of(low), normal_of(high)};
}

float quotient(float x, float scale) { return scale == 0.0F ? 0.0F : num::clamp(x / scale, -1e6F, 1e6F); }

/// The scale whose coding of x has the least squared error: reach times percent / 100 over the largest normal value, the
/// first of equals. Mean, deviation and errors are sums in ascending element, in float64.
float best_scale(const Params& p, std::span<const float> x) {
  double sum = 0, squares = 0;
  for (const float f : x) sum += static_cast<double>(f);
  const double mean = sum / static_cast<double>(x.size());
  for (const float f : x) squares += (static_cast<double>(f) - mean) * (static_cast<double>(f) - mean);
  const double spread = p.sigmas * std::sqrt(squares / static_cast<double>(x.size()));
  const double reach = std::max(std::fabs(mean + spread), std::fabs(mean - spread));
  float best = 0;
  double least = -1;
  for (int percent = p.search_low; percent <= p.search_high; percent += 2) {
    const auto scale = static_cast<float>(std::min(reach * percent / 100.0, 1e36) / static_cast<double>(kTopNormal));
    double error = 0;
    for (std::size_t i = 0; i + 1 < x.size(); i += 2) {
      const Pair q = pair_of(pair_code(quotient(x[i], scale), quotient(x[i + 1], scale)));
      const double even = static_cast<double>(q.even * scale) - static_cast<double>(x[i]), odd = static_cast<double>(q.odd * scale) - static_cast<double>(x[i + 1]);
      error += even * even + odd * odd;
    }
    if (least < 0 || error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

void start(const Params& p, View<const float> first, std::span<std::byte> state) {
  for (std::int64_t h = 0; h < first.dim(0); ++h) {
    std::vector<float> all;
    for (std::int64_t i = 0; i < first.dim(1); ++i) all.insert(all.end(), first.row(h, i).begin(), first.row(h, i).end());
    const float scale = best_scale(p, all);
    num::store(Dtype::f32, std::span(&scale, 1), state.subspan(static_cast<std::size_t>(4 * h), 4));
  }
}

float head_scale(const RecordPlace& at) {
  float scale = 0;
  num::load(Dtype::f32, at.state.subspan(static_cast<std::size_t>(4 * at.kv_head), 4), std::span(&scale, 1));
  return scale;
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) {
  const bool per_head = p.scale == Scale::head;
  RecordCodec codec{
      .encode = [p, per_head](const RecordPlace& at, View<const float> rows, std::span<std::byte> record) {
        const auto row = rows.row(0);
        float scale = per_head ? head_scale(at) : best_scale(p, row);
        if (!per_head) {
          put_fp16(record, row.size() / 2, scale);
          scale = get_fp16(record, row.size() / 2);
        }
        for (std::size_t i = 0; i < row.size() / 2; ++i)
          record[i] = static_cast<std::byte>(pair_code(quotient(row[2 * i], scale), quotient(row[2 * i + 1], scale)));
      },
      .decode = [per_head](const RecordPlace& at, std::span<const std::byte> record, View<float> rows) {
        const auto row = rows.row(0);
        const float scale = per_head ? head_scale(at) : get_fp16(record, row.size() / 2);
        for (std::size_t i = 0; i < row.size() / 2; ++i) {
          const Pair q = pair_of(static_cast<unsigned>(record[i]));
          row[2 * i] = q.even * scale;
          row[2 * i + 1] = q.odd * scale;
        }
      }};
  if (per_head) {
    codec.start = [p](View<const float> first, std::span<std::byte> state) { start(p, first, state); };
    codec.state_fault = [](std::span<const std::byte> state) -> std::optional<std::string> {
      for (std::size_t i = 0; i < state.size(); i += 4) {
        float scale = 0;
        num::load(Dtype::f32, state.subspan(i, 4), std::span(&scale, 1));
        if (!num::is_finite(scale) || scale < 0) return cat("the scale of head ", i / 4, " is ", scale, ", must be finite and not negative");
      }
      return std::nullopt;
    };
  }
  return std::make_unique<RecordStore>(c.kv_heads, dim_of(c, side), side, dtype, layout(p, c, side), std::move(codec));
}

}  // namespace

extern constinit const Method olive{
    .slug = "olive", .name = "OliVe on a KV cache", .family = Family::quantization,
    .paper = {.title = "OliVe: Accelerating Large Language Models via Hardware-friendly Outlier-Victim Pair Quantization", .url = "https://arxiv.org/abs/2304.07493", .year = 2023},
    .params = specs<Params>,
    .serving = {.prefix_cache = {Works::partly, "scale=head belongs to the prompt that was seen first"}, .paged_cache = {Works::yes, ""},
                .chunked_prefill = {Works::partly, "scale=head is taken from the first chunk alone"},
                .cuda_graphs = {Works::yes, ""}, .tensor_parallelism = {Works::yes, "heads are independent"},
                .speculation = {Works::yes, ""}, .multi_turn = {Works::yes, ""}},
    .notes = "The paper quantizes weights and activations; no released code codes a cache, so layout, scale per head or token and the search over a first call are ours; 3 deviations, 50 % to 150 % are assumed. The bit pattern of an outlier (sign, exponent, "
             "mantissa; exponent and mantissa 0 unused) follows the paper, the released code simulates values alone. The scale search takes the first call of a layer as calibration data. "
             "Decoded values are rounded to the dtype of the cache.",
    .why_not = typed<why_not>, .ledger_formula = typed<Faces::ledger_formula>, .decode_plan = typed<Faces::decode_plan>,
    .prefill_plan = typed<Faces::prefill_plan>, .open = typed<open_sides<Params, open_side>>, .open_side = typed<open_side>,
    .side_layout = typed<Faces::side_layout>,
};

}  // namespace kvatlas::methods

// polarquant: rotated vectors as radii and angles of pairs, pairs of radii and so on for four levels; angles have few bits.
// Source    arXiv 2502.02617, section 3 (recursion), section 4 (bits 4, 2, 2, 2 and density of angles); no official code found
// Formula   y = R x; pairs (a, b) become r = sqrt(a^2 + b^2) and angle; radii are paired again, four levels; angles have 4, 2, 2, 2 bits,
//           16 channels leave one fp16 radius; back by r cos, r sin and R^T
// Keeps     every token; keys after RoPE, values alike; a token is coded before its own step attends
// Deviates  codebooks of levels 2 to 4 are Lloyd-Max solutions of the paper's densities, computed here; order of coordinates and
//           packing are ours; the paper's codebooks made from each prompt are not offered
#include <array>
#include <cmath>
#include <vector>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/int_codes.hpp"
#include "reference/primitives/record_store.hpp"
#include "reference/primitives/rotation.hpp"

namespace kvatlas::methods {
namespace {

constexpr std::size_t kBlock = 16;  // coordinates under one radius

struct Params {
  int seed = 42;
  static constexpr auto fields() { return std::tuple{field(&Params::seed, "seed", "", 0, 65535, "of the random rotation")}; }
};

std::optional<std::string> why_not(const Params&, const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv && c.kind != RowKind::latent) continue;
    for (const int dim : {c.k_dim, c.kind == RowKind::kv ? c.v_dim : c.k_dim})
      if (dim % static_cast<int>(kBlock) != 0) return cat("head_dim is ", dim, ", must be a multiple of ", kBlock, ", the channels under one radius");
  }
  return why_not_sides("polarquant", shape);
}

/// Angles of level 1 (4 bits) fill dim / 4 bytes; those of levels 2, 3 and 4 (2 bits) follow as one stream.
std::int64_t first_bytes(int dim) { return dim / 4; }
std::int64_t code_bytes(int dim) { return first_bytes(dim) + num::packed_bytes(std::int64_t{dim} * 7 / 16, 2).value; }

RecordLayout layout(const Params&, const LayerClass& c, Side side) {
  const int dim = dim_of(c, side);
  return {.parts = {{"codes", code_bytes(dim), Scope::token}, {"radii", dim / 8, Scope::group}},  // fp16, one in 16 channels
          .format = {.kind = CodeKind::table, .bits = 3, .axis = GroupAxis::channels, .group_size = static_cast<int>(kBlock), .group_bits = 14}};
}
using Faces = RecordFaces<Params, layout>;

struct Direction {
  float cos, sin;
};

// Level 1: sixteen bins of pi / 8; a code decodes to the centre of its bin. Edges 0, pi/8, pi/4, 3pi/8 and centres of a quadrant.
constexpr std::array<Direction, 4> kEdges{{{1.0F, 0.0F}, {0.92387953F, 0.38268343F}, {0.70710678F, 0.70710678F}, {0.38268343F, 0.92387953F}}};
constexpr std::array<Direction, 4> kCentres{{{0.98078528F, 0.19509032F}, {0.83146961F, 0.55557023F}, {0.55557023F, 0.83146961F}, {0.19509032F, 0.98078528F}}};

// Levels 2 to 4: cosine and sine of the four angles of a quadrant, and of the angles halfway between neighbours. Angles by level:
// 0.30976 0.63398 0.93682 1.26104; 0.42625 0.67438 0.89641 1.14455; 0.52421 0.70591 0.86489 1.04658.
constexpr std::array<std::array<Direction, 4>, 3> kLevels{{
    {{{0.95240794F, 0.304826369F}, {0.805676176F, 0.592356226F}, {0.592356226F, 0.805676176F}, {0.304826369F, 0.95240794F}}},
    {{{0.910522747F, 0.413458978F}, {0.781091117F, 0.624417062F}, {0.624417062F, 0.781091117F}, {0.413458978F, 0.910522747F}}},
    {{{0.865717582F, 0.500532784F}, {0.761021911F, 0.648726175F}, {0.648726175F, 0.761021911F}, {0.500532784F, 0.865717582F}}}}};
constexpr std::array<std::array<Direction, 3>, 3> kBetween{{
    {{{0.89072066F, 0.454551103F}, {0.707106781F, 0.707106781F}, {0.454551103F, 0.89072066F}}},
    {{{0.852358607F, 0.522957747F}, {0.707106781F, 0.707106781F}, {0.522957747F, 0.852358607F}}},
    {{{0.816737819F, 0.577008956F}, {0.707106781F, 0.707106781F}, {0.577008956F, 0.816737819F}}}}};

/// The bin of angle (x, y) among sixteen; (0, 0) has angle 0. No angle is ever formed: edges are compared as products.
std::uint8_t sector(float x, float y) {
  if (x == 0.0F && y == 0.0F) return 0;
  unsigned quadrant = 0;
  if (x > 0.0F && y >= 0.0F) {
    quadrant = 0;
  } else if (x <= 0.0F && y > 0.0F) {
    quadrant = 1;
  } else if (x < 0.0F && y <= 0.0F) {
    quadrant = 2;
  } else if (x >= 0.0F && y < 0.0F) {
    quadrant = 3;
  }
  const float along = quadrant % 2 == 0 ? std::fabs(x) : std::fabs(y), across = quadrant % 2 == 0 ? std::fabs(y) : std::fabs(x);
  unsigned bin = 0;
  while (bin < 3 && across * kEdges[bin + 1].cos >= along * kEdges[bin + 1].sin) ++bin;
  return static_cast<std::uint8_t>(4 * quadrant + bin);
}

Direction centre(unsigned code) {
  const Direction d = kCentres[code % 4];
  switch (code / 4) {
    case 0: return d;
    case 1: return {-d.sin, d.cos};
    case 2: return {-d.cos, -d.sin};
    default: return {d.sin, -d.cos};
  }
}

void encode(View<const float> rotation, std::span<const float> row, std::span<std::byte> record) {
  const std::size_t dim = row.size();
  std::vector<float> x(dim), radius(dim);
  for (std::size_t i = 0; i < dim; ++i) x[i] = num::clamp(row[i], -65504.0F, 65504.0F);  // radii are fp16
  rotate(rotation, x, radius);
  std::vector<std::uint8_t> first(dim / 2), others;
  for (std::size_t level = 0; level < 4; ++level) {
    const std::size_t count = radius.size() / 2;
    for (std::size_t i = 0; i < count; ++i) {
      const float a = radius[2 * i], b = radius[2 * i + 1];
      if (level == 0) {
        first[i] = sector(a, b);
      } else {
        std::uint8_t code = 0;
        while (code < 3 && b * kBetween[level - 1][code].cos >= a * kBetween[level - 1][code].sin) ++code;
        others.push_back(a == 0.0F && b == 0.0F ? std::uint8_t{0} : code);
      }
      radius[i] = std::sqrt(num::fma(a, a, b * b));
    }
    radius.resize(count);
  }
  const auto at = static_cast<std::size_t>(first_bytes(static_cast<int>(dim))), end = static_cast<std::size_t>(code_bytes(static_cast<int>(dim)));
  num::pack(first, 4, record.first(at));
  num::pack(others, 2, record.subspan(at, end - at));
  for (std::size_t b = 0; b < radius.size(); ++b) put_fp16(record, end + 2 * b, radius[b]);
}

void decode(View<const float> rotation, std::span<const std::byte> record, std::span<float> row) {
  const std::size_t dim = row.size();
  const auto at = static_cast<std::size_t>(first_bytes(static_cast<int>(dim))), end = static_cast<std::size_t>(code_bytes(static_cast<int>(dim)));
  std::vector<std::uint8_t> first(dim / 2), others(dim * 7 / 16);
  num::unpack(record.first(at), 4, first);
  num::unpack(record.subspan(at, end - at), 2, others);
  std::vector<float> radius(dim / kBlock);
  for (std::size_t b = 0; b < radius.size(); ++b) radius[b] = get_fp16(record, end + 2 * b);
  std::size_t from = others.size();
  for (std::size_t level = 4; level-- > 0;) {
    std::vector<float> below(2 * radius.size());
    if (level > 0) from -= radius.size();
    for (std::size_t i = 0; i < radius.size(); ++i) {
      const Direction d = level == 0 ? centre(first[i]) : kLevels[level - 1][others[from + i]];
      below[2 * i] = radius[i] * d.cos;
      below[2 * i + 1] = radius[i] * d.sin;
    }
    radius = std::move(below);
  }
  rotate_back(rotation, radius, row);
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) {
  const auto rotation = std::make_shared<const Array>(random_rotation(dim_of(c, side), {.seed = static_cast<std::uint64_t>(p.seed)}));
  return std::make_unique<RecordStore>(
      c.kv_heads, dim_of(c, side), side, dtype, layout(p, c, side),
      RecordCodec{.encode = [rotation](const RecordPlace&, View<const float> rows, std::span<std::byte> record) { encode(rotation->view(), rows.row(0), record); },
                  .decode = [rotation](const RecordPlace&, std::span<const std::byte> record, View<float> rows) { decode(rotation->view(), record, rows.row(0)); }});
}

}  // namespace

extern constinit const Method polarquant{
    .slug = "polarquant", .name = "PolarQuant (recursive)", .family = Family::quantization,
    .paper = {.title = "PolarQuant: Quantizing KV Caches with Polar Transformation", .url = "https://arxiv.org/abs/2502.02617", .year = 2025},
    .params = specs<Params>,
    .serving = {.prefix_cache = {Works::yes, ""}, .paged_cache = {Works::yes, ""}, .chunked_prefill = {Works::yes, ""},
                .cuda_graphs = {Works::yes, ""}, .tensor_parallelism = {Works::yes, "heads are independent"},
                .speculation = {Works::yes, ""}, .multi_turn = {Works::yes, ""}},
    .notes = "62 bits for 16 channels are 3.875 a channel, a factor of 4.13; the paper's figure above 4.2 must count something else. The random rotation follows from the seed and "
             "is no state of a cache. Angles are never formed: a code follows from comparisons of products. Plans use the nearest format that kernels know, table codes of 3 bits with "
             "14 bits in 16 channels. Inputs are clamped to 65504, decoded values are rounded to the dtype of the cache.",
    .why_not = typed<why_not>, .ledger_formula = typed<Faces::ledger_formula>, .decode_plan = typed<Faces::decode_plan>,
    .prefill_plan = typed<Faces::prefill_plan>, .open = typed<open_sides<Params, open_side>>, .open_side = typed<open_side>,
    .side_layout = typed<Faces::side_layout>,
};

}  // namespace kvatlas::methods

#include "reference/primitives/integer_attention.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/integer_steps.hpp"
#include "core/span_rule.hpp"

namespace kvatlas {

namespace {

constexpr std::int64_t kWeightLanes = 8;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// Codes of a query for one set of channel factors, and their step.
struct QueryCodes {
  std::vector<std::int32_t> codes;
  float step = 0;
};
QueryCodes query_codes(std::span<const float> r) {
  float peak = 0;
  for (const float f : r) peak = num::max(peak, f < 0 ? -f : f);
  const num::IntegerStep s = num::integer_step(peak, num::kQueryCodes);
  QueryCodes out{.codes = {}, .step = s.step};
  for (const float f : r) {
    const std::uint32_t bits = num::signed_code_bits(f, s.reciprocal);
    out.codes.push_back(256 * num::signed_high(bits) + num::signed_low(bits));
  }
  return out;
}

std::int64_t product(std::span<const std::int32_t> a, std::span<const std::int16_t> b) {
  std::int64_t sum = 0;
  for (std::size_t c = 0; c < a.size(); ++c) sum += std::int64_t{a[c]} * b[c];
  return sum;
}

void check_keys(const CodedRows& k) {
  if (k.dim > num::kIntegerDimMost) throw InvalidArgument(cat("head_dim is ", k.dim, ", the integer mode takes at most ", num::kIntegerDimMost));
  if (!k.along_tokens && (k.group_size != k.dim || !k.zeros.empty()))
    throw InvalidArgument(cat("group_size is ", k.group_size, ", keys of the integer mode have groups along tokens, or one scale and no zero point a token"));
}

/// Numerators of one tile: tokens [first, first + u.size()).
std::vector<float> numerators(std::span<const float> u, const CodedRows& v, std::int64_t first) {
  const auto count = static_cast<std::int64_t>(u.size());
  const std::int64_t coded = std::clamp<std::int64_t>(v.coded - first, 0, count), groups = v.dim / v.group_size;
  std::vector<float> out(at(v.dim));
  std::vector<std::uint32_t> w(at(coded));
  for (std::int64_t j = 0; j < groups; ++j) {
    const auto meta = [&](std::int64_t t) { return at((first + t) * groups + j); };
    float peak = 0;
    std::array<float, kWeightLanes> zero{};
    for (std::int64_t t = 0; t < coded; ++t) {
      peak = num::max(peak, u[at(t)] * v.scales[meta(t)]);
      float& lane = zero[at(t % kWeightLanes)];
      if (!v.zeros.empty()) lane = num::fma(u[at(t)], v.zeros[meta(t)], lane);
    }
    const num::IntegerStep s = num::integer_step(peak, num::kWeightCodes);
    for (std::int64_t t = 0; t < coded; ++t) w[at(t)] = num::code_bits(u[at(t)] * v.scales[meta(t)], s.reciprocal) & 0xFFFFU;
    const float z = num::scalar::butterfly(zero.data(), kWeightLanes);
    for (std::int64_t c = j * v.group_size; c < (j + 1) * v.group_size; ++c) {
      std::int64_t n = 0;
      for (std::int64_t t = 0; t < coded; ++t) n += std::int64_t{w[at(t)]} * v.codes[at((first + t) * v.dim + c)];
      float plain = 0;
      for (std::int64_t t = coded; t < count; ++t) plain = num::fma(u[at(t)], v.plain(first + t - v.coded, c), plain);
      out[at(c)] = num::fma(static_cast<float>(n), s.step, z) + plain;
    }
  }
  return out;
}

}  // namespace

void integer_logits(std::span<const float> q, const CodedRows& k, float scale, std::span<float> x) {
  check_keys(k);
  const std::int64_t dim = k.dim, blocks = k.along_tokens ? k.coded / k.group_size : 1, rows = k.along_tokens ? k.group_size : k.coded;
  std::vector<float> r(q.begin(), q.end());
  for (std::int64_t b = 0; b < blocks; ++b) {
    float zero = 0;
    if (k.along_tokens) {
      for (std::int64_t c = 0; c < dim; ++c) r[at(c)] = q[at(c)] * k.scales[at(b * dim + c)];
      zero = num::lane_dot(q, k.zeros.subspan(at(b * dim), at(dim)));
    }
    const QueryCodes codes = query_codes(r);
    for (std::int64_t t = b * rows; t < (b + 1) * rows; ++t) {
      const auto sum = static_cast<float>(product(codes.codes, k.codes.subspan(at(t * dim), at(dim))));
      x[at(t)] = (k.along_tokens ? num::fma(sum, codes.step, zero) : (sum * codes.step) * k.scales[at(t)]) * scale;
    }
  }
  for (std::int64_t t = k.coded; t < static_cast<std::int64_t>(x.size()); ++t) x[at(t)] = num::qk_dot(q, k.plain.row(t - k.coded)) * scale;
}

SoftmaxPart integer_span(std::span<const float> x, const CodedRows& v, std::int64_t first, int tile) {
  if (tile < 1 || tile > num::kIntegerTileMost) throw InvalidArgument(cat("tile is ", tile, " tokens, must lie between 1 and ", num::kIntegerTileMost));
  if (v.along_tokens) throw InvalidArgument("values have groups along tokens, the integer mode takes groups along channels");
  SoftmaxPart part{.max = -num::infinity(), .sum = 0, .acc = std::vector<float>(at(v.dim), 0.0F)};
  const auto n = static_cast<std::int64_t>(x.size());
  for (std::int64_t begin = 0; begin < n; begin += tile) {
    const std::int64_t count = std::min<std::int64_t>(tile, n - begin);
    const float best = num::max_of(x.data() + begin, count);
    std::vector<float> u(at(count));
    std::int64_t total = 0;
    for (std::int64_t t = 0; t < count; ++t) {
      u[at(t)] = num::weight_of(num::exp2(x[at(begin + t)] - best));
      total += static_cast<std::int64_t>(u[at(t)]);
    }
    const std::vector<float> add = numerators(u, v, first + begin);
    const float m = num::max(part.max, best), a = num::exp2(part.max - m), b = num::exp2(best - m);
    part.sum = num::fma(static_cast<float>(total), b, part.sum * a);
    for (std::size_t c = 0; c < add.size(); ++c) part.acc[c] = num::fma(add[c], b, part.acc[c] * a);
    part.max = m;
  }
  return part;
}

SoftmaxPart integer_part(std::span<const float> x, const CodedRows& v, int tile) {
  SoftmaxPart total;
  const auto n = static_cast<std::int64_t>(x.size());
  const std::int64_t length = span_length(n);
  for (std::int64_t first = 0; first < n; first += length) {
    const SoftmaxPart part = integer_span(x.subspan(at(first), at(std::min(length, n - first))), v, first, tile);
    if (first == 0) total = part;
    else merge_into(total, part);
  }
  return total;
}

IntegerBound integer_bound(std::span<const float> q, const CodedRows& k, const CodedRows& v, View<const float> values, float scale, int tile, double rounding) {
  const std::int64_t dim = k.dim;
  double logits = 0, largest = 0, extent = 0;
  for (std::int64_t t = 0; t < values.dim(0); ++t)
    for (const float f : values.row(t)) largest = std::max(largest, std::abs(double{f}));
  for (std::int64_t t = 0; t < k.coded; ++t) {
    double peak = 0, codes = 0, parts = 0;
    for (std::int64_t c = 0; c < dim; ++c) {
      const std::int64_t meta = k.along_tokens ? t / k.group_size * dim + c : t;
      const double factor = std::abs(double{q[at(c)]}) * (k.along_tokens ? double{k.scales[at(meta)]} : 1.0), code = std::abs(static_cast<double>(k.codes[at(t * dim + c)]));
      const double row = k.along_tokens ? 1.0 : double{k.scales[at(meta)]};
      peak = std::max(peak, factor * row);
      codes += code;
      parts += factor * code * row + (k.zeros.empty() ? 0.0 : std::abs(double{q[at(c)]} * k.zeros[at(meta)]));
    }
    logits = std::max(logits, double{scale} * (peak / num::kQueryCodes / 2 * codes + 0x1p-18 * parts + rounding * parts + 0x1p-80));
  }
  for (std::int64_t t = k.coded; t < values.dim(0); ++t) logits = std::max(logits, double{scale} * 0x1p-80);
  int bits_top = 0;
  for (const std::int16_t c : v.codes) bits_top = std::max(bits_top, std::abs(int{c}));
  for (const float s : v.scales) extent = std::max(extent, double{s} * bits_top);
  const double weights = tile / 65535.0, sums = 0x1p-12;
  return {logits, (std::exp2(2 * logits) - 1 + weights + sums + rounding) * largest + (weights / 2 + sums) * extent};
}

}  // namespace kvatlas

#include "reference/primitives/integer_attention.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/philox.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

namespace {

/// Owns what CodedRows looks at. along_tokens: groups of 32 tokens; else `group_size` channels.
struct CodedSide {
  std::int64_t rows = 0;
  int dim = 0, group_size = 0;
  bool along_tokens = false;
  std::vector<std::int16_t> codes;
  std::vector<float> scales, zeros;
  Array plain;

  std::size_t meta(std::int64_t t, std::int64_t c) const {
    return static_cast<std::size_t>(along_tokens ? t / group_size * dim + c : t * (dim / group_size) + c / group_size);
  }
  CodedRows view() const {
    return {.coded = rows, .dim = dim, .along_tokens = along_tokens, .group_size = group_size, .codes = codes, .scales = scales, .zeros = zeros, .plain = plain.view()};
  }
  /// CodedSide and plain rows as the float mode reads them; absmax values are rounded to bf16.
  Array values() const {
    Array out({rows + plain.dims()[0], dim});
    for (std::int64_t t = 0; t < rows; ++t)
      for (std::int64_t c = 0; c < dim; ++c) {
        const auto code = static_cast<float>(codes[static_cast<std::size_t>(t * dim + c)]);
        out.view()(t, c) = zeros.empty() ? num::round_to(Dtype::bf16, code * scales[meta(t, c)]) : num::fma(code, scales[meta(t, c)], zeros[meta(t, c)]);
      }
    for (std::int64_t t = 0; t < plain.dims()[0]; ++t) std::ranges::copy(plain.view().row(t), out.view().row(rows + t).begin());
    return out;
  }
};

CodedSide coded_side(std::int64_t rows, std::int64_t plain, int dim, int group_size, bool along_tokens, std::int16_t code, float scale, float zero) {
  CodedSide out{.rows = rows, .dim = dim, .group_size = group_size, .along_tokens = along_tokens, .codes = {}, .scales = {}, .zeros = {}, .plain = Array({plain, dim})};
  out.codes.assign(static_cast<std::size_t>(rows * dim), code);
  out.scales.assign(static_cast<std::size_t>(rows * dim / group_size), scale);
  out.zeros.assign(out.scales.size(), zero);
  return out;
}

CodedSide draw_coded_side(std::int64_t rows, std::int64_t plain, int dim, int bits, bool along_tokens, std::uint64_t seed) {
  const RandomStream stream{.seed = seed};
  std::uint64_t n = 0;
  CodedSide out = coded_side(rows, plain, dim, along_tokens ? 32 : bits < 0 ? dim : 32, along_tokens, 0, 0, 0);
  for (std::int16_t& c : out.codes) c = static_cast<std::int16_t>(std::abs(random_normal(stream, n++)) * 1e6);
  for (std::int16_t& c : out.codes) c = bits < 0 ? static_cast<std::int16_t>(static_cast<std::int8_t>(c & 0xFF)) : static_cast<std::int16_t>(c & ((1 << bits) - 1));
  for (float& s : out.scales) s = num::round_to(Dtype::f16, static_cast<float>(std::abs(random_normal(stream, n++)) / (bits < 0 ? 64 : 1 << bits)));
  for (float& z : out.zeros) z = num::round_to(Dtype::f16, static_cast<float>(random_normal(stream, n++)) / 4);
  if (bits < 0) out.zeros.clear();
  for (float& f : out.plain.values()) f = num::round_to(Dtype::bf16, static_cast<float>(random_normal(stream, n++)));
  return out;
}

std::vector<float> draw_coded_query(int dim, std::uint64_t seed) {
  std::vector<float> q;
  for (int c = 0; c < dim; ++c) q.push_back(num::round_to(Dtype::bf16, static_cast<float>(random_normal({.seed = seed}, static_cast<std::uint64_t>(c)))));
  return q;
}

std::vector<float> finished(const SoftmaxPart& part) {
  std::vector<float> out(part.acc.size());
  finish(part, out);
  return out;
}

}  // namespace

TEST_CASE("integer logits: a worked example", "[unit]") {
  CodedSide k = coded_side(2, 0, 2, 2, true, 0, 0, 0);
  k.codes = {3, 1, 0, 2};
  k.scales = {1.0F, 0.5F};
  k.zeros = {0.25F, -0.5F};
  const std::vector<float> q{1.0F, 2.0F};  // both factors are 1: both query codes 32639, Z = 1/4 - 1
  std::vector<float> x(2);
  integer_logits(q, k.view(), 2.0F, x);
  const float step = 1.0F / 32639.0F;
  CHECK(x[0] == num::fma(4.0F * 32639.0F, step, -0.75F) * 2.0F);
  CHECK(x[1] == num::fma(2.0F * 32639.0F, step, -0.75F) * 2.0F);
  CHECK(std::abs(x[0] - 6.5F) < 1e-6F);
}

TEST_CASE("integer mode at its limits: 256 channels of code 255, tiles of 128 equal scores, one dominant score, zero scales", "[unit]") {
  const CodedSide k = coded_side(128, 0, 256, 32, true, 255, 1.0F, 0.0F);
  const std::vector<float> q(256, 1.0F);
  std::vector<float> x(128);
  integer_logits(q, k.view(), 1.0F, x);
  CHECK(std::ranges::count(x, x[0]) == 128);
  CHECK(x[0] == static_cast<float>(std::int64_t{32639} * 255 * 256) * (1.0F / 32639.0F));

  const SoftmaxPart top = integer_part(std::vector<float>(128, 5.0F), coded_side(128, 0, 32, 32, false, 255, 1.0F, 0.0F).view(), 128);
  CHECK(top.max == 5.0F);
  CHECK(top.sum == 128.0F * 65535.0F);
  CHECK(top.acc[0] == 2139062400.0F);  // 65535 * 255 * 128, exact
  CHECK(finished(top)[31] == 255.0F);

  CodedSide v = coded_side(64, 0, 32, 32, false, 1, 1.0F, 0.0F);
  std::fill_n(v.codes.begin() + 7 * 32, 32, std::int16_t{255});
  std::vector<float> dominant(64, -200.0F);
  dominant[7] = 60.0F;
  const SoftmaxPart one = integer_part(dominant, v.view(), 64);
  CHECK(one.sum == 65535.0F);
  CHECK(finished(one)[0] == 255.0F);

  CHECK(finished(integer_part(std::vector<float>(32, -3.0F), coded_side(32, 0, 32, 32, false, 0, 0.0F, 3.0F).view(), 64)) == std::vector<float>(32, 3.0F));
  integer_logits(std::vector<float>(32, 2.0F), coded_side(32, 0, 32, 32, true, 0, 0.0F, 0.5F).view(), 1.0F, std::span(x).first(32));
  CHECK(x[0] == 32.0F);
}

TEST_CASE("no order of channels or tokens changes an integer sum", "[unit]") {
  CodedSide k = draw_coded_side(32, 0, 64, 4, true, 1), v = draw_coded_side(64, 0, 64, 4, false, 2);
  std::ranges::fill(k.zeros, 0.0F);  // zero points are float sums, whose order is part of the definition
  std::ranges::fill(v.zeros, 0.0F);
  const std::vector<float> q = draw_coded_query(64, 3);
  std::vector<float> x(32), y(32), order(64);
  integer_logits(q, k.view(), 1.0F, x);
  CodedSide k2 = k;
  std::vector<float> q2(64);
  for (std::size_t c = 0; c < 64; ++c) {
    const std::size_t from = c * 29 % 64;
    q2[c] = q[from];
    k2.scales[c] = k.scales[from];
    for (std::size_t t = 0; t < 32; ++t) k2.codes[t * 64 + c] = k.codes[t * 64 + from];
  }
  integer_logits(q2, k2.view(), 1.0F, y);
  CHECK(x == y);
  std::vector<float> w(64), w2(64);
  CodedSide v2 = v;
  for (std::size_t t = 0; t < 64; ++t) w[t] = static_cast<float>(t % 7) - 3.25F;
  for (std::size_t t = 0; t < 64; ++t) {
    const std::size_t from = t * 37 % 64;
    w2[t] = w[from];
    std::copy_n(v.codes.begin() + static_cast<std::ptrdiff_t>(from * 64), 64, v2.codes.begin() + static_cast<std::ptrdiff_t>(t * 64));
    std::copy_n(v.scales.begin() + static_cast<std::ptrdiff_t>(from * 2), 2, v2.scales.begin() + static_cast<std::ptrdiff_t>(t * 2));
  }
  CHECK(integer_part(w, v.view(), 64).acc == integer_part(w2, v2.view(), 64).acc);
}

TEST_CASE("the integer mode stays within its bound of the float mode, and the bound is no wide one", "[unit]") {
  for (const int bits : {2, 4, 8, -8})
    for (const std::int64_t rows : {32, 640}) {
      CAPTURE(bits, rows);
      const int dim = 128;
      const std::int64_t plain = bits < 0 ? 0 : 40;
      const CodedSide k = draw_coded_side(rows, plain, dim, bits, bits > 0, 11), v = draw_coded_side(rows, plain, dim, bits, false, 12);
      const std::vector<float> q = draw_coded_query(dim, 13);
      const Array keys = k.values(), values = v.values();
      const float scale = 0.127517F;
      std::vector<float> x(static_cast<std::size_t>(rows + plain)), y(x.size());
      logits(q, keys.view(), scale, x);
      integer_logits(q, k.view(), scale, y);
      for (const int tile : {64, 128}) {
        const IntegerBound bound = integer_bound(q, k.view(), v.view(), values.view(), scale, tile, bits < 0 ? 0x1p-9 + 0x1p-24 : 0.0);
        const std::vector<float> a = finished(softmax_part(x, values.view())), b = finished(integer_part(y, v.view(), tile));
        double logit = 0, largest = 0, out = 0;
        for (std::size_t t = 0; t < x.size(); ++t) logit = std::max(logit, std::abs(double{x[t]} - y[t]));
        for (std::size_t c = 0; c < a.size(); ++c) out = std::max(out, std::abs(double{a[c]} - b[c]));
        for (const float f : values.values()) largest = std::max(largest, std::abs(double{f}));
        CAPTURE(tile, logit, bound.logits, out, bound.outputs, largest);
        CHECK(logit <= bound.logits);
        CHECK(out <= bound.outputs);
        // The float mode's own roundings of decoded values make most of the wider one.
        CHECK(bound.outputs <= (bits < 0 ? 0.2 : 0.005) * largest);
      }
    }
}

TEST_CASE("the integer mode refuses what it has no integers for", "[unit]") {
  std::vector<float> x(32);
  const std::vector<float> q(512, 1.0F);
  CHECK_THROWS_WITH(integer_logits(q, coded_side(32, 0, 512, 32, true, 1, 1, 0).view(), 1, x), "head_dim is 512, the integer mode takes at most 256");
  CHECK_THROWS_WITH(integer_logits(std::span(q).first(64), coded_side(32, 0, 64, 32, false, 1, 1, 0).view(), 1, x),
                    "group_size is 32, keys of the integer mode have groups along tokens, or one scale and no zero point a token");
  CHECK_THROWS_WITH(integer_span(x, coded_side(32, 0, 64, 32, false, 1, 1, 0).view(), 0, 129), "tile is 129 tokens, must lie between 1 and 128");
  CHECK_THROWS_WITH(integer_span(x, coded_side(32, 0, 64, 32, true, 1, 1, 0).view(), 0, 64), "values have groups along tokens, the integer mode takes groups along channels");
}

#include "models/weight_quantizers.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::models;

namespace {

Array identity(std::int64_t n) {
  Array a({n, n});
  for (std::int64_t i = 0; i < n; ++i) a.view()(i, i) = 1;
  return a;
}

}  // namespace

TEST_CASE("batquant: with the identity a block is MXFP4", "[unit]") {
  std::vector<float> x{0, .1F, -.2F, .35F, .5F, -.75F, 1, 1.3F, -1.6F, 2, 2.5F, -3, .05F, -.02F, 4.4F, -.6F};
  x.resize(32, 0.0F);
  const MxBlock b = encode_batquant(x, {.shared = identity(4), .own = identity(8)});
  CHECK(b.scale == 127);
  const std::vector<int> expected{0, 0, 8, 1, 1, 10, 2, 3, 11, 4, 4, 13, 0, 8, 6, 9};
  for (std::size_t i = 0; i < 16; ++i) CHECK(static_cast<int>(b.codes[i]) == expected[i]);
  CHECK(decode_batquant(b)[14] == 4.0F);
}

TEST_CASE("batquant: a block's transform spreads its outlier, and the inverse on weights keeps the product", "[unit]") {
  std::vector<float> x(32, 0.5F), w(32);
  x[5] = 8.0F;
  for (std::size_t i = 0; i < 32; ++i) w[i] = static_cast<float>(i % 7) * 0.25F - 0.75F;
  Array half({2, 2}, 0.70710678F);  // a rotation by 45 degrees of places 16 apart
  half.view()(0, 1) = -0.70710678F;
  Array back({2, 2}, 0.70710678F);  // its inverse, transposed: itself
  back.view()(0, 1) = -0.70710678F;
  const auto error = [&](const BlockTransform& t, const BlockTransform& of_weights) {
    const auto a = decode_batquant(encode_batquant(x, t)), b = decode_batquant(encode_batquant(w, of_weights));
    double exact = 0, product = 0;
    for (std::size_t i = 0; i < 32; ++i) {
      exact += static_cast<double>(x[i]) * static_cast<double>(w[i]);
      product += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    }
    return std::fabs(product - exact);
  };
  CHECK(error({.shared = half, .own = identity(16)}, {.shared = back, .own = identity(16)}) < 1.5);
}

TEST_CASE("batquant: clipping limits what is coded", "[unit]") {
  std::vector<float> y(32, 0.0F);
  y[0] = 8.0F;
  CHECK(decode_batquant(encode_batquant(y, {.shared = identity(1), .own = identity(32)}))[0] == 8.0F);
  CHECK(decode_batquant(encode_batquant(y, {.shared = identity(1), .own = identity(32), .clip = 0.5F}))[0] == 4.0F);
}

TEST_CASE("batquant: refusals name the value and what is allowed", "[unit]") {
  const std::vector<float> x(32, 1.0F), few(16, 1.0F);
  CHECK_THROWS_WITH(encode_batquant(few, {.shared = identity(4), .own = identity(8)}), "block has 16 values, must have 32");
  CHECK_THROWS_WITH(encode_batquant(x, {.shared = identity(4), .own = identity(4)}), "factors have 4 and 4 rows, must be square and make 32");
  CHECK_THROWS_WITH(encode_batquant(x, {.shared = identity(4), .own = identity(8), .clip = 0}), "clip is 0, must be above 0 and at most 1");
  std::vector<float> bad = x;
  bad[3] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(encode_batquant(bad, {.shared = identity(4), .own = identity(8)}), "block[3] is inf, must be finite");
}

TEST_CASE("ptq161: one salient channel of five has 4 bits, the others a sign around the mean of their row", "[unit]") {
  Array w({2, 5});
  const float rows[2][5] = {{1, -1, 3, 9, -3}, {0.5F, 0.5F, 0.5F, -6, 0.5F}};
  for (std::int64_t r = 0; r < 2; ++r)
    for (std::int64_t c = 0; c < 5; ++c) w.view()(r, c) = rows[r][c];
  const std::vector<float> activations{1, 2, 3, 50, 4};
  const Ptq161Weights q = encode_ptq161(w.view(), activations);
  CHECK(q.salient == std::vector<std::uint8_t>{0, 0, 0, 1, 0});
  CHECK(q.rows[0].mean == 0.0F);
  CHECK(q.rows[0].deviation == 2.0F);  // of 1, 1, 3, 3
  const Array back = decode_ptq161(q);
  const float expected[2][5] = {{2, -2, 2, 9, -2}, {0.5F, 0.5F, 0.5F, -6, 0.5F}};
  for (std::int64_t r = 0; r < 2; ++r)
    for (std::int64_t c = 0; c < 5; ++c) CHECK(back.view()(r, c) == expected[r][c]);
  CHECK(q.bits_per_weight() == Approx(1.6 + 0.5 + 12.8));  // a mask of two rows and four numbers of five weights

  Array large({64, 4096}, 0.25F);
  std::vector<float> scales(4096);
  for (std::size_t c = 0; c < scales.size(); ++c) scales[c] = static_cast<float>(c);
  const double bits = encode_ptq161(large.view(), scales).bits_per_weight();
  CHECK(bits > 1.6);
  CHECK(bits < 1.64);  // the paper's 1.61 and the mask of 64 rows
  CHECK_THROWS_WITH(encode_ptq161(large.view(), activations), "activations have 5 values, must have one for each of the 4096 inputs");
}

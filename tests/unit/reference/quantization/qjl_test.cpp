#include <cmath>

#include "core/errors.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"
#include "tests/support/side_rows.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {
std::vector<float> normal_rows(int dim, int count, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> x;
  for (int i = 0; i < dim * count; ++i) x.push_back(random.normal());
  return x;
}
}  // namespace

TEST_CASE("qjl: bits of a key and a value at the paper's sizes", "[unit]") {
  // A key: 32 bytes of signs, 32 of outlier signs, two norms, 8 channels in 32 tokens: 68.25 bytes. A value: 2 bits and 32 in 32: 3.
  const double key = 8 * 68.25 / 128, first = 8 * 84.25 / 128, value = 3;
  const std::int64_t n = 1 << 16;  // residual values are 128 of them
  const double plain_values = (16.0 - value) * 128 / static_cast<double>(n);
  CHECK(bits_per_value("qjl:first_layers=0", 128, n) == Approx((key + value + plain_values) / 2).epsilon(1e-12));
  CHECK(bits_per_value("qjl", 128, n) == Approx((first + value + plain_values) / 2).epsilon(1e-12));
  CHECK(bits_per_value("qjl:first_layers=0,outlier_channels=0", 128, n) == Approx((8 * 34.0 / 128 + value + plain_values) / 2).epsilon(1e-12));
}

TEST_CASE("qjl: the channels of largest norm over a group are sketched apart", "[unit]") {
  std::vector<float> x = normal_rows(32, 8, 1);
  for (std::size_t t = 0; t < 8; ++t) {
    x[32 * t + 5] *= 50;
    x[32 * t + 17] = 20;
  }
  const std::string recipe = "qjl:group_size=8,residual_window=8,outlier_channels=2,sketch_bits=64,outlier_sketch_bits=32,first_layers=0";
  const StoredSide s = store_rows(recipe, Side::key, 32, x);
  CHECK(s.bytes("outlier_channels") == std::vector<int>{5, 17});
  CHECK(s.bytes("signs").size() == 8 * 64 / 8);
  CHECK(s.bytes("outlier_signs").size() == 8 * 32 / 8);
  for (std::size_t t = 0; t < 8; ++t) {
    CHECK(s.fp16("outlier_norms")[t] == Approx(std::hypot(x[32 * t + 5], 20.0F)).epsilon(1e-3));
    CHECK(s.fp16("norms")[t] >= s.fp16("outlier_norms")[t]);
  }
}

TEST_CASE("qjl: products with a query are unbiased over seeds, with the paper's spread", "[unit]") {
  const std::vector<float> x = normal_rows(32, 8, 2), q = normal_rows(32, 1, 3);
  const int seeds = 300, m = 64;
  double exact = 0, mean = 0, square = 0, k2 = 0, q2 = 0;
  for (std::size_t i = 0; i < 32; ++i) {
    exact += static_cast<double>(x[i]) * static_cast<double>(q[i]);
    k2 += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    q2 += static_cast<double>(q[i]) * static_cast<double>(q[i]);
  }
  for (int seed = 0; seed < seeds; ++seed) {
    const std::string recipe = cat("qjl:group_size=8,residual_window=8,outlier_channels=0,first_layers=0,sketch_bits=", m, ",seed=", seed);
    const std::vector<float> k = store_rows(recipe, Side::key, 32, x).decoded;
    double score = 0;
    for (std::size_t i = 0; i < 32; ++i) score += static_cast<double>(k[i]) * static_cast<double>(q[i]);
    mean += score / seeds;
    square += score * score / seeds;
  }
  const double deviation = std::sqrt(square - mean * mean), bound = std::sqrt(k2 * q2 * 1.5707963 / m);
  CHECK(std::fabs(mean - exact) < 4 * bound / std::sqrt(static_cast<double>(seeds)));
  CHECK(deviation < bound);        // orthogonal rows do better than independent ones
  CHECK(deviation > 0.3 * bound);
}

TEST_CASE("qjl: a zero key has norm 0 and decodes to zero; short prompts stay plain", "[unit]") {
  const std::string recipe = "qjl:group_size=8,residual_window=16,sketch_bits=64,outlier_sketch_bits=64";
  const StoredSide zeros = store_rows(recipe, Side::key, 16, std::vector<float>(16 * 16, 0.0F));
  for (const float f : zeros.decoded) CHECK(f == 0.0F);
  const std::vector<float> x = normal_rows(16, 15, 4);
  CHECK(store_rows(recipe, Side::key, 16, x).decoded == x);
}

TEST_CASE("qjl: refusals say what is allowed", "[unit]") {
  CHECK(refusal("qjl:sketch_bits=100", 64) == "sketch_bits is 100, must be a multiple of 8");
  CHECK(refusal("qjl:sketch_bits=128", 64) == "outlier_sketch_bits is 256, must be at most sketch_bits (128)");
  CHECK(refusal("qjl:residual_window=100", 64) == "residual_window is 100, must be a multiple of group_size (32)");
  CHECK(refusal("qjl:v_bits=3", 64) == "v_bits is 3, must be 2, 4 or 8");
  CHECK(refusal("qjl", 64, RowKind::kv, Tokens(9)) == "a layer has a sliding window of 9 tokens, must have none: qjl keeps every row");
}

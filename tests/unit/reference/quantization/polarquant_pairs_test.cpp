#include <cmath>

#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/side_rows.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("polarquant_pairs: 4.25 bits a key channel, values plain or coded", "[unit]") {
  const std::int64_t n = 1 << 14;
  CHECK(bits_per_value("polarquant_pairs", 128, n) == (4.25 + 16) / 2);
  CHECK(bits_per_value("polarquant_pairs:v_bits=4", 128, n) == Approx((4.25 + 4.25 + (16 - 4.25) * 128.0 / static_cast<double>(n)) / 2));
}

TEST_CASE("polarquant_pairs: by hand, a quarter turn in eight tokens", "[unit]") {
  // One pair (channels 0 and 1): radius 2, angles 0, 0.1, ..., 0.7; the other pair is constant.
  std::vector<float> x;
  for (int t = 0; t < 8; ++t) {
    const float a = 0.1F * static_cast<float>(t);
    x.insert(x.end(), {2.0F * std::cos(a), 1.0F, 2.0F * std::sin(a), 0.0F});  // half-split pairs (0, 2) and (1, 3)
  }
  const StoredSide s = store_rows("polarquant_pairs:group_size=8,residual_window=8,angle_bits=3", Side::key, 4, x);
  CHECK(s.fp16("scales")[0] == Approx(0.7 / 8).epsilon(2e-3));
  CHECK(s.fp16("minima")[0] == Approx(0).margin(1e-3));
  CHECK(s.fp16("scales")[2] == 0.0F);  // constant angle
  CHECK(s.fp16("scales")[3] == 0.0F);  // constant radius
  CHECK(s.fp16("minima")[3] == 1.0F);
  for (std::size_t t = 0; t < 8; ++t) {
    CHECK(s.decoded[4 * t + 1] == 1.0F);
    CHECK(s.decoded[4 * t + 3] == 0.0F);
    const double angle = std::atan2(s.decoded[4 * t + 2], s.decoded[4 * t]);
    CHECK(std::fabs(angle - 0.1 * static_cast<double>(t)) <= 0.5 * 0.7 / 8 + 1e-3);
  }
}

TEST_CASE("polarquant_pairs: refusals say what is allowed", "[unit]") {
  CHECK(refusal("polarquant_pairs:angle_bits=5,radius_bits=4", 64) == "angle_bits and radius_bits are 5 and 4, must be at most 8 together: a pair fills a byte");
  CHECK(refusal("polarquant_pairs:residual_window=100", 64) == "residual_window is 100, must be a multiple of group_size (128)");
  CHECK(refusal("polarquant_pairs:v_bits=5", 64) == "v_bits is 5, must be 2, 4, 8 or 16");
  CHECK(refusal("polarquant_pairs:v_bits=4", 64) == "v_group_size is 128, must divide head_dim (64)");
}

TEST_CASE("polarquant_pairs: a head that rotates in part has channels without a partner, and is refused", "[unit]") {
  const MethodChoice m = parse_choice("polarquant_pairs");
  CHECK(why_not(*m.method, m.row, uniform_shape(1, 2, 1, 64, Dtype::bf16, {.rotary_dim = 32})) ==
        "rotary_dim is 32 of 64, must be the whole head or 0: pairs of channels are those that RoPE turns together");
  for (const int rotary : {0, 64}) CHECK(!why_not(*m.method, m.row, uniform_shape(1, 2, 1, 64, Dtype::bf16, {.rotary_dim = rotary})));
}

#include "reference/retrieval/double_sparse/labels.hpp"

#include <cmath>

#include "core/arith.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::double_sparsity;
using kvatlas::test::Random;

TEST_CASE("labels are coded on levels between minimum and maximum, halves to even", "[unit]") {
  const std::vector<float> x{-1, 0, 1, 2};
  const Codes c = quantize(x, 2);
  REQUIRE(c.codes == std::vector<std::uint8_t>{0, 1, 2, 3});
  REQUIRE(c.min == -1.0F);
  REQUIRE(c.max == 2.0F);
  std::vector<float> y(4);
  dequantize(c, 2, y);
  REQUIRE(y == x);
  REQUIRE(quantize(std::vector<float>{0, 0.5F, 1.5F, 2.5F, 3}, 2).codes == std::vector<std::uint8_t>{0, 0, 2, 2, 3});
  REQUIRE(quantize(std::vector<float>{0, 0.5F, 1}, 1).codes == std::vector<std::uint8_t>{0, 0, 1});
}

TEST_CASE("a label without range, with a tiny one and with one past the largest float decode to finite values", "[unit]") {
  for (const std::vector<float>& x : {std::vector<float>{2.5F, 2.5F}, std::vector<float>{0.0F, 1e-45F}, std::vector<float>{-3e38F, 3e38F}, std::vector<float>{7}}) {
    const Codes c = quantize(x, 8);
    std::vector<float> y(x.size());
    dequantize(c, 8, y);
    for (const float f : y) REQUIRE(num::is_finite(f));
    REQUIRE(y[0] == x[0]);  // the smallest value is a level
  }
}

TEST_CASE("stored labels decode to what they were coded to, at every width and odd channel counts", "[unit]") {
  Random random(3);
  for (const int bits : {1, 2, 3, 4, 5, 8, 16})
    for (const int channels : {1, 3, 8, 31, 32, 33})
      for (const Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
        const LabelFormat f{.channels = channels, .bits = bits, .dtype = dtype};
        REQUIRE(f.row_bytes() == (bits == 16 ? channels * bytes_of(dtype) : (channels * bits + 7) / 8 + 2 * bytes_of(dtype)));
        std::vector<float> x(static_cast<std::size_t>(channels)), direct(x.size()), stored(x.size());
        for (float& v : x) v = std::round(random.normal() * 16) / 16;  // values of every dtype
        std::vector<std::byte> bytes(static_cast<std::size_t>(f.row_bytes()));
        f.encode(x, bytes);
        f.decode(bytes, stored);
        if (bits == 16) direct = x;
        if (bits < 16) dequantize(quantize(x, bits), bits, direct);
        REQUIRE(stored == direct);
      }
}

TEST_CASE("the defaults of the scripts are 128 bits a token and head, before minimum and maximum", "[unit]") {
  const LabelFormat f{.channels = 128 / 2, .bits = 2, .dtype = Dtype::f16};
  REQUIRE(8 * f.row_bytes() == 128 + 2 * 16);
}

TEST_CASE("channels are ranked by the sum of magnitudes, of equal ones the lower first", "[unit]") {
  Calibration sums(2, 4);
  sums.add(0, std::vector<float>{1, -3, 2, 0});
  sums.add(0, std::vector<float>{-1, 0, 1, 0});
  sums.add(1, std::vector<float>{1, 2, 3, 4}, std::vector<float>{-4, -2, 0, 1});
  REQUIRE(std::vector<double>(sums.sums(0).begin(), sums.sums(0).end()) == std::vector<double>{2, 3, 3, 0});
  REQUIRE(sums.channels(0, 4) == std::vector<std::uint16_t>{1, 2, 0, 3});
  REQUIRE(sums.channels(1, 2) == std::vector<std::uint16_t>{0, 1});
}

TEST_CASE("all channels uncoded give the true logit", "[unit]") {
  const std::vector<float> q{1, 2, 3, 4}, k{0.5F, -1, 2, 0.25F};
  const std::vector<std::uint16_t> channels{3, 1, 0, 2};
  REQUIRE(label_score(query_label(q, channels, 16), query_label(k, channels, 16)) == (0.5F - 2 + 6 + 1) / 2);
  REQUIRE(query_label(q, channels, 16) == std::vector<float>{4, 2, 1, 3});
}

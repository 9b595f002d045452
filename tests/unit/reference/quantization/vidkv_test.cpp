#include <cmath>

#include "reference/quantization/vidkv/codes.hpp"
#include "tests/catch.hpp"
#include "tests/support/side_rows.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("vidkv: bits a channel with metadata", "[unit]") {
  // Keys: 64 channels of 2 + 1 bits, 64 components of 1 + 0.5; values: 1.6 + 0.5 bits, trits of a group end on a byte (820 of 819.2).
  const double key = (64 * 3 + 64 * 1.5) / 128, value = 8.0 * 820 / (32 * 128) + 0.5;
  CHECK(bits_per_value("vidkv", 128, 1 << 20) == Approx((key + value) / 2).epsilon(1e-5));
  CHECK(bits_per_value("vidkv:values=two_bit", 128, 1 << 20) == Approx((key + 3) / 2).epsilon(1e-5));
}

TEST_CASE("vidkv: three levels by hand, five to a byte", "[unit]") {
  std::vector<std::uint8_t> codes(4);
  const std::vector<float> x{1, -1, 0.1F, 0.2F};
  const float m = vidkv::mean_magnitude(x, Dtype::f32);
  CHECK(m == Approx(0.575));
  vidkv::encode_ternary(x, 0.5F * m, codes);
  CHECK(codes == std::vector<std::uint8_t>{2, 0, 1, 1});
  std::vector<std::byte> packed(2);
  const std::vector<std::uint8_t> six{2, 0, 1, 1, 2, 1};
  vidkv::pack_trits(six, packed);
  CHECK(static_cast<int>(packed[0]) == 2 + 9 + 27 + 162);
  CHECK(static_cast<int>(packed[1]) == 1);
  std::vector<std::uint8_t> back(6);
  vidkv::unpack_trits(packed, back);
  CHECK(back == six);
  for (int b = 0; b < 243; ++b) {  // every legal byte comes back
    const std::vector<std::byte> one{static_cast<std::byte>(b)};
    std::vector<std::uint8_t> five(5);
    std::vector<std::byte> again(1);
    vidkv::unpack_trits(one, five);
    vidkv::pack_trits(five, again);
    REQUIRE(again == one);
  }
}

TEST_CASE("vidkv: the real transform of a constant has one component, and every length comes back", "[unit]") {
  for (const int n : {1, 2, 3, 7, 8, 64}) {
    CAPTURE(n);
    const vidkv::RealFourier fourier(n);
    std::vector<float> x(static_cast<std::size_t>(n), 3.0F), components(x.size()), back(x.size());
    fourier.forward(x, components);
    CHECK(components[0] == 3.0F * static_cast<float>(n));
    for (std::size_t i = 1; i < components.size(); ++i) CHECK(std::fabs(components[i]) < 1e-5F);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>((i * 13) % 7) - 2.5F;
    fourier.forward(x, components);
    fourier.inverse(components, back);
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(back[i] == Approx(x[i]).margin(1e-5));
  }
}

TEST_CASE("vidkv: channels of widest range have four levels, the released decoder loses sign and scale", "[unit]") {
  std::vector<float> x;
  for (int t = 0; t < 8; ++t) x.insert(x.end(), {0.25F, static_cast<float>(t % 4), 0.25F, static_cast<float>(3 - t % 4)});
  const std::string recipe = "vidkv:group_size=8,residual_window=8";
  const StoredSide s = store_rows(recipe, Side::key, 4, x);
  CHECK(s.bytes("channels") == std::vector<int>{0b1010});
  for (std::size_t t = 0; t < 8; ++t) {
    CHECK(s.decoded[4 * t + 1] == static_cast<float>(t % 4));
    CHECK(s.decoded[4 * t] == Approx(0.25).margin(1e-3));  // components 0.5 and 0: signs and means are exact
  }
  const StoredSide paper = store_rows(recipe, Side::value, 4, x), released = store_rows("vidkv:group_size=8,residual_window=8,decode=released", Side::value, 4, x);
  CHECK(paper.bytes("trits") == released.bytes("trits"));
  CHECK(paper.decoded[0] == 0.25F);
  CHECK(released.decoded[0] == 1.0F);
}

TEST_CASE("vidkv: refusals say what is allowed", "[unit]") {
  CHECK(refusal("vidkv:group_size=9", 64) == "group_size is 9, must be a multiple of 4: a group of 2-bit codes fills bytes");
  CHECK(refusal("vidkv:residual_window=100", 64) == "residual_window is 100, must be a multiple of group_size (32)");
}

#include "reference/primitives/group_quantizer.hpp"

#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;

namespace {

std::vector<float> in_fp16(std::vector<float> x) {
  num::round_to(Dtype::f16, x);
  return x;
}

std::vector<int> ints(std::span<const std::uint8_t> codes) { return {codes.begin(), codes.end()}; }

std::vector<int> ints(std::span<const std::byte> bytes) {
  std::vector<int> out;
  for (const std::byte b : bytes) out.push_back(std::to_integer<int>(b));
  return out;
}

}  // namespace

TEST_CASE("four values in two bits: code 1.5 rounds to the even 2", "[unit]") {
  const GroupQuantizer q{.bits = 2, .group_size = 4};
  GroupRows rows(q, 4);
  const std::vector<float> x{-1.0F, 0.5F, 2.0F, 0.25F};
  rows.append({x.data(), {1, 4}});
  REQUIRE(ints(rows.codes()) == std::vector<int>{0x78});
  REQUIRE(ints(rows.scales()) == std::vector<int>{0x00, 0x3C});  // 1
  REQUIRE(ints(rows.zeros()) == std::vector<int>{0x00, 0xBC});  // -1
  Array back({1, 4});
  rows.read(0, back.view());
  REQUIRE(back.values() == std::vector<float>{-1.0F, 1.0F, 2.0F, 0.0F});
}

TEST_CASE("eight fp16 values in two and in four bits give the bytes of the worked example", "[unit]") {
  const std::vector<float> x = in_fp16({0.1F, 0.2F, -0.3F, 0.45F, 0.05F, -0.15F, 0.3F, -0.02F});
  std::vector<std::uint8_t> codes(8);
  const GroupQuantizer two{.bits = 2, .group_size = 8};
  const auto m = two.encode(x, codes);
  REQUIRE(num::encode_fp16(m.zero) == 0xB4CD);
  REQUIRE(num::encode_fp16(m.scale) == 0x3400);
  REQUIRE(ints(codes) == std::vector<int>{2, 2, 0, 3, 1, 1, 2, 1});
  std::vector<float> decoded;
  for (const std::uint8_t c : codes) decoded.push_back(num::round_to(Dtype::f16, two.decode(c, m)));
  const std::vector<float> want = in_fp16({0.199951F, 0.199951F, -0.300049F, 0.449951F, -0.050049F, -0.050049F, 0.199951F, -0.050049F});
  REQUIRE(decoded == want);
  GroupRows rows(two, 8);
  rows.append({x.data(), {1, 8}});
  REQUIRE(ints(rows.codes()) == std::vector<int>{0xCA, 0x65});

  const GroupQuantizer four{.bits = 4, .group_size = 8};
  REQUIRE(num::encode_fp16(four.encode(x, codes).scale) == 0x2A66);
  REQUIRE(ints(codes) == std::vector<int>{8, 10, 0, 15, 7, 3, 12, 6});
  GroupRows nibbles(four, 8);
  nibbles.append({x.data(), {1, 8}});
  REQUIRE(ints(nibbles.codes()) == std::vector<int>{0xA8, 0xF0, 0x37, 0x6C});
}

TEST_CASE("groups along tokens hold one channel each, block by block", "[unit]") {
  const GroupQuantizer q{.bits = 4, .group_size = 2, .axis = GroupAxis::tokens};
  GroupRows rows(q, 2);
  // Channel 0 is 0, 15, then 1, 31; channel 1 is 3, 3, then -1, 0.5.
  const std::vector<float> x{0, 3, 15, 3, 1, -1, 31, 0.5F};
  rows.append({x.data(), {2, 2}});
  rows.append({x.data() + 4, {2, 2}});
  REQUIRE(rows.rows() == 4);
  REQUIRE(ints(rows.codes()) == std::vector<int>{0xF0, 0x00, 0xF0, 0xF0});
  Array back({3, 2});
  rows.read(1, back.view());
  REQUIRE(back.view()(0, 0) == 15.0F);
  REQUIRE(back.view()(0, 1) == 3.0F);
  REQUIRE(back.view()(1, 0) == 1.0F);
  REQUIRE(back.view()(2, 0) == 31.0F);
  REQUIRE(q.format().bits_per_value() == 4 + 32.0 / 2);
}

TEST_CASE("a group of equal values, and one whose range fp16 cannot hold, decode to their minimum", "[unit]") {
  const GroupQuantizer q{.bits = 2, .group_size = 4};
  std::vector<std::uint8_t> codes(4, 9);
  auto m = q.encode(std::vector<float>(4, -0.75F), codes);
  REQUIRE(m.scale == 0.0F);
  REQUIRE(m.zero == -0.75F);
  REQUIRE(ints(codes) == std::vector<int>{0, 0, 0, 0});
  m = q.encode(std::vector<float>{-60000.0F, 60000.0F, 0.0F, 1.0F}, codes);
  REQUIRE(m.scale == 0.0F);
  REQUIRE(m.zero == num::round_to(Dtype::f16, -60000.0F));
  REQUIRE(ints(codes) == std::vector<int>{0, 0, 0, 0});
  // A range below fp16's smallest step is no range.
  m = q.encode(std::vector<float>{0.0F, 1e-9F, 0.0F, 0.0F}, codes);
  REQUIRE(m.scale == 0.0F);
}

TEST_CASE("inputs beyond fp16 saturate before they are coded", "[unit]") {
  const GroupQuantizer q{.bits = 2, .group_size = 4};
  std::vector<std::uint8_t> codes(4);
  const auto m = q.encode(std::vector<float>{1e30F, 0.0F, 1e30F, 32752.0F}, codes);
  REQUIRE(m.zero == 0.0F);
  REQUIRE(q.decode(codes[0], m) == 3 * m.scale);
  REQUIRE(std::fabs(3 * m.scale - 65504.0F) <= 32.0F);
}

TEST_CASE("a decoded value lies within half a step of its input", "[unit]") {
  test::Random random(11);
  for (const int bits : {2, 4, 8}) {
    const GroupQuantizer q{.bits = bits, .group_size = 32};
    for (int round = 0; round < 200; ++round) {
      std::vector<float> x(32);
      for (float& f : x) f = num::round_to(Dtype::f16, random.normal());
      std::vector<std::uint8_t> codes(32);
      const auto m = q.encode(x, codes);
      for (std::size_t i = 0; i < x.size(); ++i) {
        // Half a step, the rounding of x - minimum and of the quotient (2^-11 of at most the range), of the scale (2^-11 of code).
        const float range = static_cast<float>((1 << bits) - 1) * m.scale;
        REQUIRE(std::fabs(q.decode(codes[i], m) - x[i]) <= 0.5F * m.scale + range * 3 * 0x1p-11F);
      }
    }
  }
}

TEST_CASE("loading refuses bytes that are not whole blocks", "[unit]") {
  const GroupQuantizer q{.bits = 4, .group_size = 8, .axis = GroupAxis::tokens};
  GroupRows rows(q, 2);
  const std::vector<std::byte> bytes(64);
  REQUIRE_NOTHROW(rows.load(std::span(bytes).first(8), std::span(bytes).first(4), std::span(bytes).first(4), 0));
  REQUIRE(rows.rows() == 8);
  REQUIRE_THROWS_WITH(rows.load(std::span(bytes).first(4), std::span(bytes).first(2), std::span(bytes).first(2), 1),
                      "codes, scales and zeros of head 1 have 4, 2 and 2 bytes, must be whole blocks of 8 rows of 2 values");
  REQUIRE_THROWS_AS(rows.load(std::span(bytes).first(8), std::span(bytes).first(2), std::span(bytes).first(4), 1), InvalidArgument);
  REQUIRE(rows.rows() == 8);
}

TEST_CASE("symmetric codes: scale from the largest magnitude, two's complement, stored scale or exact one", "[unit]") {
  GroupQuantizer q{.bits = 4, .group_size = 4, .work = Dtype::f32, .meta = MetaType::e4m3, .scheme = QuantScheme::absmax};
  std::vector<std::uint8_t> codes(4);
  auto m = q.encode(std::vector<float>{7.4375F, 1, -3.5F, 0.5F}, codes);
  REQUIRE(m.scale == 1.0F);
  REQUIRE(ints(codes) == std::vector<int>{7, 1, 12, 0});
  REQUIRE(q.decode(12, m) == -4.0F);
  q.exact_scale = true;
  q.rounding = QuantRounding::truncate;
  m = q.encode(std::vector<float>{7.4375F, 1, -3.5F, 0.5F}, codes);
  REQUIRE(ints(codes) == std::vector<int>{7, 0, 13, 0});
  m = q.encode(std::vector<float>(4, 0x1p-12F), codes);  // a seventh of it is below E4M3's smallest step
  REQUIRE(m.scale == 0.0F);
  REQUIRE(q.decode(codes[0], m) == 0.0F);
}

TEST_CASE("an integer zero point is rounded; one that its storage cannot hold makes the group degenerate", "[unit]") {
  std::vector<std::uint8_t> codes(4);
  GroupQuantizer q{.bits = 4, .group_size = 4, .work = Dtype::f32, .meta = MetaType::f32, .scheme = QuantScheme::integer_zero};
  auto m = q.encode(std::vector<float>{-1.1F, 2.65F, 0, 0.5F}, codes);  // scale 0.25, zero 4
  REQUIRE(m.zero == 4.0F);
  REQUIRE(q.decode(4, m) == 0.0F);
  q.meta = MetaType::f16;
  for (const float sign : {1.0F, -1.0F}) {
    // Scale 0.001, zero point about -100,000 steps: beyond fp16's 65504. Codes around a clamped one would decode to 65.5.
    m = q.encode(std::vector<float>{sign * 100.0F, sign * 100.005F, sign * 100.01F, sign * 100.015F}, codes);
    CAPTURE(sign, m.scale, m.zero);
    REQUIRE(m.scale == 0.0F);
    REQUIRE(std::fabs(q.decode(codes[2], m) - sign * 100.0F) <= 0.04F);
    REQUIRE(ints(codes) == std::vector<int>{0, 0, 0, 0});
    // Ten times the range: 10,000 steps are held.
    m = q.encode(std::vector<float>{sign * 100.0F, sign * 100.05F, sign * 100.1F, sign * 100.15F}, codes);
    REQUIRE(m.scale > 0.0F);
  }
}

TEST_CASE("no group of finite values decodes to NaN or infinity: constants, zeros, subnormals, extremes, every scheme and storage", "[unit]") {
  const std::vector<std::vector<float>> groups{{0, 0, 0, 0}, {-0.0F, 0, 0, -0.0F}, {3.25F, 3.25F, 3.25F, 3.25F}, {1e-45F, 0, -1e-45F, 1e-39F},
                                               {3.4e38F, -3.4e38F, 0, 1}, {1e38F, 1e38F, 1e38F, 1e38F}, {65504, -65504, 0, 1}, {-7e-8F, 7e-8F, 0, 0}, {500, 501, 502, 503}};
  for (const QuantScheme scheme : {QuantScheme::minmax, QuantScheme::integer_zero, QuantScheme::absmax})
    for (const MetaType meta : {MetaType::f32, MetaType::bf16, MetaType::f16, MetaType::e4m3})
      for (const Dtype work : {Dtype::f32, Dtype::bf16, Dtype::f16})
        for (const auto& group : groups) {
          if (meta == MetaType::e4m3 && scheme != QuantScheme::absmax) continue;
          const GroupQuantizer q{.bits = 2, .group_size = 4, .work = work, .meta = meta, .scheme = scheme};
          std::vector<std::uint8_t> codes(4, 9);
          const auto m = q.encode(group, codes);
          CAPTURE(static_cast<int>(scheme), static_cast<int>(meta), static_cast<int>(work), group[0], m.scale, m.zero);
          for (const std::uint8_t c : codes) {
            CHECK(c < 4);
            CHECK(num::is_finite(q.decode(c, m)));
          }
        }
}

TEST_CASE("a group ends on a whole byte", "[unit]") {
  const std::vector<float> x{0, 1, 2, 3};
  GroupRows three({.bits = 3, .group_size = 4}, 4);
  three.append({x.data(), {1, 4}});
  REQUIRE(three.codes().size() == 2);  // 12 bits
}

TEST_CASE("rows leave at the front and at the end; scales that no group can have are refused on load", "[unit]") {
  const GroupQuantizer q{.bits = 4, .group_size = 2, .work = Dtype::f32, .meta = MetaType::f32};
  GroupRows rows(q, 4);
  test::Random random(3);
  Array x({5, 4});
  for (float& f : x.values()) f = random.normal();
  rows.append(x.view());
  Array before({5, 4}), after({3, 4});
  rows.read(0, before.view());
  rows.drop_front(1);
  rows.truncate(3);
  rows.read(0, after.view());
  for (std::int64_t i = 0; i < 3; ++i)
    for (std::int64_t c = 0; c < 4; ++c) REQUIRE(after.view()(i, c) == before.view()(i + 1, c));
  std::vector<std::byte> scales(rows.scales().begin(), rows.scales().end());
  const float bad = -2.0F;
  num::store(Dtype::f32, std::span(&bad, 1), std::span(scales).subspan(4, 4));
  GroupRows other(q, 4);
  REQUIRE_THROWS_WITH(other.load(rows.codes(), scales, rows.zeros(), 3), "scale 1 of head 3 is -2, must be finite and not negative");
}

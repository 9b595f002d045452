#include "core/rope.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <random>
#include <vector>

#include "core/errors.hpp"
#include "tests/catch.hpp"

namespace {

using namespace kvatlas;

constexpr long double kTwoPiL = 2.0L * std::numbers::pi_v<long double>;

RopeSpec plain(int rotary_dim, double base = 10000.0) { return {.base = base, .rotary_dim = rotary_dim}; }

RopeSpec yarn(int rotary_dim, double base, double original_context, double factor) {
  return {.base = base, .rotary_dim = rotary_dim, .scaling = RopeScaling::yarn, .factor = factor,
          .original_context = original_context};
}

std::vector<float> random_row(int n, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<float> row(static_cast<std::size_t>(n));
  for (float& x : row) x = static_cast<float>(static_cast<double>(engine()) / 2147483648.0 - 1.0);
  return row;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  float worst = 0.0F;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
  return worst;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i])) return false;
  return true;
}

TEST_CASE("unscaled frequencies are base to the power of minus 2i over d", "[unit]") {
  for (const double base : {10000.0, 150000.0, 500000.0, 1e6}) {
    const std::vector<double> theta = rope_frequencies(plain(128, base));
    REQUIRE(theta.size() == 64);
    REQUIRE(theta[0] == 1.0);
    for (std::size_t i = 0; i < theta.size(); ++i) {
      const long double expected = std::pow(static_cast<long double>(base), -2.0L * static_cast<long double>(i) / 128.0L);
      // One rounding of the exponent's product with log2(base) <= 20, the rest below it: 2^-52 * 20.
      REQUIRE(std::abs(static_cast<long double>(theta[i]) / expected - 1.0L) < 0x1p-47L);
    }
  }
}

TEST_CASE("a spec without rotary channels has no frequencies and changes nothing", "[unit]") {
  REQUIRE(rope_frequencies(plain(0)).empty());
  std::vector<float> row = random_row(8, 1);
  const std::vector<float> before = row;
  const RopeTable table(plain(0), 4_tok);
  table.apply(row, 3);
  REQUIRE(same_bits(row, before));
}

TEST_CASE("linear scaling divides every frequency by the factor", "[unit]") {
  RopeSpec spec = plain(64);
  const std::vector<double> theta = rope_frequencies(spec);
  spec.scaling = RopeScaling::linear;
  spec.factor = 8.0;
  const std::vector<double> scaled = rope_frequencies(spec);
  for (std::size_t i = 0; i < theta.size(); ++i) REQUIRE(scaled[i] == theta[i] / 8.0);
}

TEST_CASE("static NTK bases for 128 channels are 20221.26 and 40889.94", "[unit][golden]") {
  REQUIRE(std::abs(ntk_base(10000.0, 128, 2.0) - 20221.26) < 0.005);
  REQUIRE(std::abs(ntk_base(10000.0, 128, 4.0) - 40889.94) < 0.005);
  RopeSpec spec = plain(128);
  spec.scaling = RopeScaling::ntk;
  spec.factor = 4.0;
  const std::vector<double> scaled = rope_frequencies(spec);
  const std::vector<double> theta = rope_frequencies(plain(128));
  REQUIRE(scaled[0] == 1.0);
  REQUIRE(std::abs(scaled[63] * 4.0 / theta[63] - 1.0) < 1e-13);  // the slowest pair is stretched by the factor
}

TEST_CASE("dynamic NTK leaves the base alone up to the original context and stretches it beyond", "[unit]") {
  RopeSpec spec = plain(128);
  spec.scaling = RopeScaling::ntk;
  spec.factor = 2.0;
  spec.original_context = 4096.0;
  REQUIRE(dynamic_ntk(spec, 4096_tok).base == 10000.0);
  REQUIRE(dynamic_ntk(spec, 4096_tok).scaling == RopeScaling::none);
  // s * context / L0 - (s - 1) = 2 * 2 - 1 = 3
  REQUIRE(dynamic_ntk(spec, 8192_tok).base == ntk_base(10000.0, 128, 3.0));
  spec.original_context = 0.0;
  REQUIRE_THROWS_WITH(dynamic_ntk(spec, 1_tok),
                      "original_context and factor are 0 and 2, must be positive and at least 1 for dynamic ntk");
}

TEST_CASE("YaRN of 128 channels, factor 16 has its published ramp and frequencies", "[unit][golden]") {
  const RopeSpec spec = yarn(128, 10000.0, 4096.0, 16.0);
  const YarnRamp ramp = yarn_ramp(spec);
  REQUIRE(ramp.low == 20.0);
  REQUIRE(ramp.high == 46.0);
  const std::vector<double> theta = rope_frequencies(spec);
  const std::vector<double> unscaled = rope_frequencies(plain(128));
  for (std::size_t i = 0; i <= 20; ++i) REQUIRE(theta[i] == unscaled[i]);
  REQUIRE(std::abs(theta[20] - .0562341) < 5e-8);
  REQUIRE(std::abs(theta[33] - .00460044) < 5e-9);
  REQUIRE(std::abs(theta[46] - 8.33451e-5) < 5e-11);
  REQUIRE(std::abs(theta[63] - 7.21739e-6) < 5e-12);
  REQUIRE(std::abs(rope_attention_factor(spec) - 1.277259) < 5e-7);
}

TEST_CASE("YaRN without truncation has the gpt-oss ramp", "[unit][golden]") {
  RopeSpec spec = yarn(64, 150000.0, 4096.0, 32.0);
  spec.yarn_truncate = false;
  const YarnRamp ramp = yarn_ramp(spec);
  REQUIRE(std::abs(ramp.low - 8.0928) < 5e-5);
  REQUIRE(std::abs(ramp.high - 17.3980) < 5e-5);
  REQUIRE(std::abs(rope_attention_factor(spec) - 1.34657) < 5e-6);
}

TEST_CASE("a YaRN ramp of no width becomes a step", "[unit]") {
  RopeSpec spec = yarn(8, 10000.0, 10.0, 4.0);  // both ends are negative before the clamp, the ceiling of high is 0
  const YarnRamp ramp = yarn_ramp(spec);
  REQUIRE(ramp.low == 0.0);
  REQUIRE(ramp.high - ramp.low > 0.0);
  const std::vector<double> theta = rope_frequencies(spec);
  for (const double t : theta) REQUIRE(std::isfinite(t));
}

TEST_CASE("the attention factor is the spec's own if it has one, and 1 outside YaRN and for factors up to 1", "[unit]") {
  RopeSpec spec = yarn(128, 10000.0, 4096.0, 16.0);
  spec.attention_factor = 1.0;
  REQUIRE(rope_attention_factor(spec) == 1.0);
  spec.attention_factor = 0.0;
  spec.factor = 1.0;
  REQUIRE(rope_attention_factor(spec) == 1.0);
  REQUIRE(rope_attention_factor(plain(128)) == 1.0);
}

TEST_CASE("Llama-3 scaling keeps fast pairs, divides slow ones and blends between", "[unit]") {
  RopeSpec spec{.base = 500000.0, .rotary_dim = 128, .scaling = RopeScaling::llama3, .factor = 8.0,
                .original_context = 8192.0, .low_freq_factor = 1.0, .high_freq_factor = 4.0};
  const std::vector<double> scaled = rope_frequencies(spec);
  const std::vector<double> theta = rope_frequencies(plain(128, 500000.0));
  int kept = 0, divided = 0, blended = 0;
  for (std::size_t i = 0; i < theta.size(); ++i) {
    const double wavelength = static_cast<double>(kTwoPiL) / theta[i];
    if (wavelength < 8192.0 / 4.0) {
      REQUIRE(scaled[i] == theta[i]);
      ++kept;
    } else if (wavelength > 8192.0) {
      REQUIRE(scaled[i] == theta[i] / 8.0);
      ++divided;
    } else {
      const double smooth = (8192.0 / wavelength - 1.0) / 3.0;
      REQUIRE(std::abs(scaled[i] / ((1.0 - smooth) * theta[i] / 8.0 + smooth * theta[i]) - 1.0) < 1e-14);
      ++blended;
    }
  }
  // Wavelengths 2 pi 500000^(i/64): below 2048 for i <= 28, above 8192 from i = 35.
  REQUIRE(kept == 29);
  REQUIRE(blended == 6);
  REQUIRE(divided == 29);
}

TEST_CASE("cos and sin are those of the exact angle, rounded once", "[unit]") {
  const RopeTable table(plain(128));
  for (const std::int64_t position : {0LL, 1LL, 2LL, 4095LL, 131071LL, 1048575LL, -7LL, -100000LL}) {
    const Rotation r = table.rotation(position);
    for (std::size_t i = 0; i < 64; ++i) {
      // The angle is a float64 product: its own error is 2^-53 of up to 2^20, far below a float32 rounding near 1.
      const long double angle = static_cast<long double>(static_cast<double>(position) * table.frequencies()[i]);
      REQUIRE(std::abs(static_cast<long double>(r.cos[i]) - std::cos(angle)) <= 0x1.001p-25L);
      REQUIRE(std::abs(static_cast<long double>(r.sin[i]) - std::sin(angle)) <= 0x1.001p-25L);
    }
  }
}

TEST_CASE("a pair rotates by four rounded products and two rounded sums", "[unit]") {
  const RopeTable table(plain(2));  // one pair, one radian a position
  const Rotation r = table.rotation(5);
  std::vector<float> row = {0.3F, -0.7F};
  table.apply(row, 5);
  const volatile float xc = 0.3F * r.cos[0], ys = -0.7F * r.sin[0], yc = -0.7F * r.cos[0], xs = 0.3F * r.sin[0];
  REQUIRE(row[0] == xc - ys);
  REQUIRE(row[1] == yc + xs);
}

TEST_CASE("layouts pair different channels and agree after conversion", "[unit]") {
  RopeSpec half = plain(32);
  RopeSpec inter = half;
  inter.layout = RopeLayout::interleaved;
  const std::vector<float> original = random_row(32, 3);
  std::vector<float> by_inter = original;
  RopeTable(inter).apply(by_inter, 77);
  interleaved_to_half_split(by_inter, inter);
  std::vector<float> by_half = original;
  interleaved_to_half_split(by_half, inter);
  REQUIRE(by_half[1] == original[2]);
  REQUIRE(by_half[17] == original[3]);
  RopeTable(half).apply(by_half, 77);
  REQUIRE(same_bits(by_inter, by_half));
  half_split_to_interleaved(by_half, inter);
  interleaved_to_half_split(by_half, inter);
  REQUIRE(same_bits(by_inter, by_half));
}

TEST_CASE("only the rotary channels turn", "[unit]") {
  RopeSpec spec = plain(16);
  spec.first_channel = 48;
  const std::vector<float> before = random_row(80, 4);
  std::vector<float> row = before;
  RopeTable(spec).apply(row, 9);
  for (std::size_t c = 0; c < row.size(); ++c) {
    CAPTURE(c);
    if (c < 48 || c >= 64) REQUIRE(row[c] == before[c]);
    else REQUIRE(row[c] != before[c]);
  }
}

TEST_CASE("the inverse undoes the rotation, attention factor included", "[unit]") {
  for (const RopeSpec& spec : {plain(128), yarn(128, 10000.0, 4096.0, 16.0)}) {
    const RopeTable table(spec, 10_tok);
    for (const std::int64_t position : {0LL, 1LL, 9LL, 10LL, 65536LL, 1000000LL}) {
      const std::vector<float> before = random_row(128, static_cast<unsigned>(position) + 1U);
      std::vector<float> row = before;
      table.apply(row, position);
      table.apply_inverse(row, position);
      // |x|, |y| <= 1: six roundings of values up to 2 * 1.28, each at most 2^-24 of it.
      REQUIRE(largest_difference(row, before) <= 6.0F * 2.56F * 0x1p-24F);
    }
  }
}

TEST_CASE("the product of a query and a key depends on their distance alone", "[unit]") {
  const RopeTable table(plain(64));
  const std::vector<float> q = random_row(64, 5), k = random_row(64, 6);
  const auto score = [&](std::int64_t at_q, std::int64_t at_k) {
    std::vector<float> a = q, b = k;
    table.apply(a, at_q);
    table.apply(b, at_k);
    return dot(a, b);
  };
  const double expected = score(17, 3);
  for (const std::int64_t shift : {1LL, 100LL, 100000LL}) REQUIRE(std::abs(score(17 + shift, 3 + shift) - expected) < 64 * 0x1p-22);
  REQUIRE(std::abs(score(40, 40) - dot(q, k)) < 64 * 0x1p-22);
}

TEST_CASE("moving a rotated key by the difference of positions does not apply the attention factor twice", "[unit]") {
  for (const RopeSpec& spec : {plain(64), yarn(64, 150000.0, 4096.0, 32.0)}) {
    const RopeTable table(spec);
    for (const auto& [from, to] : {std::pair{500LL, 20LL}, std::pair{20LL, 500LL}, std::pair{7LL, 7LL}}) {
      const std::vector<float> key = random_row(64, 8);
      std::vector<float> moved = key, direct = key;
      table.apply(moved, from);
      table.rerotate(moved, from, to);
      table.apply(direct, to);
      REQUIRE(largest_difference(moved, direct) <= 6.0F * 2.7F * 0x1p-24F);
    }
  }
}

TEST_CASE("the number of cached positions does not change a bit", "[unit]") {
  const RopeSpec spec = yarn(64, 150000.0, 4096.0, 32.0);
  const RopeTable none(spec), some(spec, 32_tok);
  for (const std::int64_t position : {0LL, 1LL, 31LL, 32LL, 33LL, 1000LL}) {
    std::vector<float> a = random_row(64, 9), b = a;
    none.apply(a, position);
    some.apply(b, position);
    REQUIRE(same_bits(a, b));
    REQUIRE(same_bits(none.rotation(position).cos, some.rotation(position).cos));
    REQUIRE(same_bits(none.rotation(position).sin, some.rotation(position).sin));
  }
}

TEST_CASE("rows of all heads turn as single rows do", "[unit]") {
  const RopeTable table(plain(16), 4_tok);
  const std::vector<std::int64_t> positions = {5, 0, 2};
  Array rows({2, 3, 16});
  rows.values() = random_row(96, 10);
  Array expected = rows;
  for (std::int64_t h = 0; h < 2; ++h)
    for (std::int64_t i = 0; i < 3; ++i) table.apply(expected.view().row(h, i), positions[static_cast<std::size_t>(i)]);
  const std::vector<float> before = rows.values();
  table.apply(rows.view(), positions);
  REQUIRE(same_bits(rows.values(), expected.values()));
  table.apply_inverse(rows.view(), positions);
  REQUIRE(largest_difference(rows.values(), before) <= 12.0F * 0x1p-24F);
  REQUIRE_THROWS_WITH(table.apply(rows.view(), std::span(positions).first(2)),
                      "positions has 2 entries, rows must be [heads, 2, dim]");
}

TEST_CASE("a rotary embedding that cannot exist is refused in one sentence", "[unit]") {
  const auto refusal = [](RopeSpec spec, auto change) {
    change(spec);
    return why_not(spec, 128).value_or("");
  };
  const RopeSpec spec = yarn(128, 10000.0, 4096.0, 16.0);
  REQUIRE(refusal(spec, [](RopeSpec&) {}).empty());
  REQUIRE(refusal(spec, [](RopeSpec& s) { s.rotary_dim = 3; }) == "rotary_dim is 3, must be even and not negative");
  REQUIRE(refusal(spec, [](RopeSpec& s) { s.first_channel = 2; }) ==
          "first_channel + rotary_dim is 130, must be at most the row width (128)");
  REQUIRE(refusal(spec, [](RopeSpec& s) { s.first_channel = -1; }) == "first_channel is -1, must not be negative");
  REQUIRE(refusal(spec, [](RopeSpec& s) { s.base = 1.0; }) == "base is 1, must be above 1");
  REQUIRE(refusal(spec, [](RopeSpec& s) { s.factor = 0.0; }) == "factor is 0, must be positive");
  REQUIRE(refusal(spec, [](RopeSpec& s) { s.original_context = 0.0; }) ==
          "original_context is 0, must be positive for yarn and llama3 scaling");
  REQUIRE(refusal(spec, [](RopeSpec& s) { s.beta_slow = 32.0; }) ==
          "beta_slow and beta_fast are 32 and 32, must be positive and ascending");
  REQUIRE(refusal(spec, [](RopeSpec& s) { s.attention_factor = -1.0; }) ==
          "attention_factor is -1, must be 0 (the scheme's own) or positive");
  REQUIRE(refusal(spec, [](RopeSpec& s) { s.scaling = RopeScaling::llama3, s.low_freq_factor = 4.0; }) ==
          "low_freq_factor and high_freq_factor are 4 and 4, must be positive and ascending");
  REQUIRE(refusal(spec, [](RopeSpec& s) { s.scaling = RopeScaling::ntk, s.rotary_dim = 2; }) ==
          "rotary_dim is 2, must be at least 4 for ntk scaling");
  RopeSpec broken = spec;
  broken.rotary_dim = 3;
  REQUIRE_THROWS_AS(RopeTable(broken), InvalidArgument);
}

TEST_CASE("rows, positions and frequencies that do not fit a table are refused", "[unit]") {
  const RopeTable table(plain(16));
  std::vector<float> row(15);
  REQUIRE_THROWS_WITH(table.apply(row, 0), "row has 15 channels, must have at least first_channel + rotary_dim (16)");
  row.resize(16);
  REQUIRE_THROWS_WITH(table.apply(row, RopeTable::kMaxPosition + 1),
                      "position is 1073741825, must be between -1073741824 and 1073741824");
  REQUIRE_THROWS_WITH(RopeTable(plain(16), {1.0, 0.5}), "frequencies has 2 entries, must have rotary_dim / 2 (8)");
  REQUIRE_THROWS_WITH(RopeTable(plain(2), {2.0}), "frequency is 2, must be between 0 and 1");
  REQUIRE_THROWS_WITH(RopeTable(plain(2), Tokens(-1)), "cached positions is -1, must be between 0 and 1073741824");
  REQUIRE_THROWS_WITH(table.rotate(row, Rotation{}), "rotation has 0 pairs, must have 8");
}

}  // namespace

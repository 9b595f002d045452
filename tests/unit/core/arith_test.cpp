#include "core/arith.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tests/catch.hpp"

using namespace kvatlas;

namespace {

std::uint32_t raw(float x) {
  std::uint32_t u = 0;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
float from_raw(std::uint32_t u) {
  float x = 0.0F;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

/// Distance in units of the last place that a float of the true value's size has.
double ulps(float got, long double want) {
  int exponent = 0;
  std::frexp(want, &exponent);
  const long double ulp = std::ldexp(1.0L, std::max(exponent - 24, -149));
  return static_cast<double>(std::fabs((static_cast<long double>(got) - want) / ulp));
}

}  // namespace

TEST_CASE("the processor and the compiler keep to IEEE arithmetic", "[unit]") {
  volatile float tiny = 1e-40F;
  volatile float one = 1.0F;
  volatile float three = 3.0F;
  volatile float two = 2.0F;
  volatile float a = 1.0F + 0x1p-12F;
  volatile float minus = -(1.0F + 0x1p-11F);
  REQUIRE(tiny * one != 0.0F);                         // subnormals survive
  REQUIRE(raw(tiny * two) == 2 * raw(tiny));
  REQUIRE(raw(one / three) == 0x3EAAAAABU);
  REQUIRE(raw(std::sqrt(static_cast<float>(two))) == 0x3FB504F3U);
  const float x = a;
  const float y = minus;
  REQUIRE(x * x + y == 0.0F);                          // the product is rounded before the sum
  REQUIRE(num::fma(x, x, y) == 0x1p-24F);              // and is not where fusion is asked for
}

TEST_CASE("exp2 stays within 0.94 ulp and is exact at integers", "[unit]") {
  double worst = 0.0;
  const int samples = 2'000'000;
  for (int i = 0; i < samples; ++i) {
    const float x = static_cast<float>(-126.0 + 254.0 * i / samples);
    worst = std::max(worst, ulps(num::exp2(x), exp2l(static_cast<long double>(x))));
  }
  for (std::uint32_t u = raw(0x1p-30F); u < raw(2.0F); u += 331) {
    const float x = from_raw(u);
    worst = std::max(worst, ulps(num::exp2(-x), exp2l(-static_cast<long double>(x))));
    worst = std::max(worst, ulps(num::exp2(x), exp2l(static_cast<long double>(x))));
  }
  CAPTURE(worst);
  REQUIRE(worst <= 0.94);
  for (int n = -126; n <= 127; ++n) REQUIRE(num::exp2(static_cast<float>(n)) == std::ldexp(1.0F, n));
}

TEST_CASE("exp2 ends where floats end", "[unit]") {
  CHECK(num::exp2(std::nextafter(-126.0F, -200.0F)) == 0.0F);
  CHECK(num::exp2(-126.0F) == 0x1p-126F);
  CHECK(num::exp2(-1e30F) == 0.0F);
  CHECK(num::exp2(-INFINITY) == 0.0F);
  CHECK_FALSE(std::signbit(num::exp2(-INFINITY)));
  CHECK(num::exp2(-0.0F) == 1.0F);
  CHECK(num::exp2(1e-40F) == 1.0F);
  CHECK(num::exp2(127.5F) == Approx(std::exp2(127.5)));
  CHECK(std::isfinite(num::exp2(std::nextafter(128.0F, 0.0F))));
  CHECK(std::isinf(num::exp2(128.0F)));
  CHECK(std::isinf(num::exp2(INFINITY)));
  CHECK(std::isnan(num::exp2(NAN)));
  float previous = 0.0F;
  for (float x = -126.0F; x < 0.0F; x += 0.0007F) {  // a softmax weight never exceeds 1
    REQUIRE(num::exp2(x) <= 1.0F);
    REQUIRE(num::exp2(x) >= previous);
    previous = num::exp2(x);
  }
}

TEST_CASE("log2 stays within 1.01 ulp, never decreases and is exact at powers of two", "[unit]") {
  double worst = 0.0;
  int falls = 0;
  for (std::uint32_t u = raw(0.5F); u < raw(4.0F); u += 11) {
    const float x = from_raw(u);
    const float y = num::log2(x);
    worst = std::max(worst, ulps(y, log2l(static_cast<long double>(x))));
    falls += num::log2(from_raw(u + 1)) < y;
  }
  for (std::uint32_t d = 0; d < 20'000; ++d)  // next to 1, where the result is tiny
    for (const std::uint32_t u : {0x3F800000U + d, 0x3F800000U - d})
      worst = std::max(worst, ulps(num::log2(from_raw(u)), log2l(static_cast<long double>(from_raw(u)))));
  for (std::uint32_t u = 1; u < 0x7F800000U; u += 1361) {
    const float x = from_raw(u);
    worst = std::max(worst, ulps(num::log2(x), log2l(static_cast<long double>(x))));
  }
  CAPTURE(worst);
  REQUIRE(worst <= 1.01);
  REQUIRE(falls == 0);
  for (int n = -149; n <= 127; ++n) REQUIRE(num::log2(std::ldexp(1.0F, n)) == static_cast<float>(n));
}

TEST_CASE("log2 answers the arguments without a logarithm", "[unit]") {
  CHECK(num::log2(0.0F) == -INFINITY);
  CHECK(num::log2(-0.0F) == -INFINITY);
  CHECK(std::isnan(num::log2(-1.0F)));
  CHECK(std::isnan(num::log2(-INFINITY)));
  CHECK(std::isnan(num::log2(NAN)));
  CHECK(num::log2(INFINITY) == INFINITY);
  CHECK(raw(num::log2(1.0F)) == 0U);
}

TEST_CASE("rsqrt is the rounded quotient of the rounded root", "[unit]") {
  int wrong = 0;
  for (std::uint32_t u = 1; u < 0x7F800000U; u += 4099) {
    const float x = from_raw(u);
    const auto root = static_cast<float>(sqrtl(static_cast<long double>(x)));  // 64 bits hold enough: no double rounding
    wrong += num::rsqrt(x) != static_cast<float>(1.0L / static_cast<long double>(root));
  }
  REQUIRE(wrong == 0);
  CHECK(num::rsqrt(4.0F) == 0.5F);
  CHECK(num::rsqrt(0.0F) == INFINITY);
  CHECK(num::rsqrt(INFINITY) == 0.0F);
  CHECK(std::isnan(num::rsqrt(-1.0F)));
}

TEST_CASE("rint takes ties to even", "[unit]") {
  CHECK(num::rint(0.5F) == 0.0F);
  CHECK(num::rint(1.5F) == 2.0F);
  CHECK(num::rint(2.5F) == 2.0F);
  CHECK(num::rint(-2.5F) == -2.0F);
  CHECK(num::rint(-3.5F) == -4.0F);
  CHECK(num::rint(0x1.fffffep-2F) == 0.0F);
  CHECK(std::signbit(num::rint(-0.25F)));
  CHECK(num::rint(8388607.5F) == 8388608.0F);
  CHECK(num::rint(-INFINITY) == -INFINITY);
  CHECK(std::isnan(num::rint(NAN)));
}

TEST_CASE("min, max and clamp prefer their first argument", "[unit]") {
  CHECK(num::min(1.0F, 2.0F) == 1.0F);
  CHECK(num::max(1.0F, 2.0F) == 2.0F);
  CHECK(std::signbit(num::max(-0.0F, 0.0F)));
  CHECK_FALSE(std::signbit(num::min(0.0F, -0.0F)));
  CHECK(std::isnan(num::max(NAN, 1.0F)));
  CHECK(num::max(1.0F, NAN) == 1.0F);
  CHECK(num::clamp(5.0F, -1.0F, 3.0F) == 3.0F);
  CHECK(num::clamp(-5.0F, -1.0F, 3.0F) == -1.0F);
  CHECK(num::clamp(2.0F, -1.0F, 3.0F) == 2.0F);
  CHECK(std::isnan(num::clamp(NAN, -1.0F, 3.0F)));
}

TEST_CASE("the maximum of a row does not depend on its order", "[unit]") {
  std::vector<float> row{-0.0F, -3.0F, 0.0F, -1e-40F};
  std::sort(row.begin(), row.end());
  do REQUIRE(raw(num::max_of(row)) == 0U);
  while (std::next_permutation(row.begin(), row.end()));
  CHECK(num::max_of(std::vector<float>{}) == -INFINITY);
  CHECK(num::max_of(std::vector<float>{-INFINITY, -2.0F, -7.0F}) == -2.0F);
}

TEST_CASE("selection keys order by score, then by lower index", "[unit]") {
  struct Row {
    float score;
    std::uint32_t index;
  };
  std::vector<Row> rows;
  for (const float score : {-INFINITY, -3.4e38F, -1.0F, -1e-45F, -0.0F, 0.0F, 1e-45F, 1e-38F, 1.0F, 1.0000001F, 3.4e38F, INFINITY})
    for (const std::uint32_t index : {0U, 1U, 31U, 0x7FFFFFFFU, 0xFFFFFFFFU}) rows.push_back({score, index});
  int wrong = 0;
  for (const Row& a : rows)
    for (const Row& b : rows) {
      const bool first = a.score > b.score || (a.score == b.score && a.index < b.index);
      wrong += (num::selection_key(a.score, a.index) > num::selection_key(b.score, b.index)) != first;
      wrong += num::index_of_key(num::selection_key(a.score, a.index)) != a.index;
    }
  REQUIRE(wrong == 0);
}

TEST_CASE("attention mass is a fixed-point number with 31 fractional bits", "[unit]") {
  CHECK(num::to_mass(0.0F) == 0U);
  CHECK(num::to_mass(1.0F) == 0x80000000U);
  CHECK(num::to_mass(0.5F) == 0x40000000U);
  CHECK(num::to_mass(0x1p-31F) == 1U);
  CHECK(num::to_mass(0x1p-32F) == 0U);         // tie to even
  CHECK(num::to_mass(1.5F * 0x1p-31F) == 2U);  // tie to even
  CHECK(num::to_mass(2.5F * 0x1p-31F) == 2U);
  CHECK(num::to_mass(1e-40F) == 0U);
  CHECK(num::from_mass(0) == 0.0F);
  CHECK(num::from_mass(1) == 0x1p-31F);
  CHECK(num::from_mass(0x80000000U) == 1.0F);
  CHECK(num::from_mass(0x100000100000000U) == 33554432.0F);       // 2^25 + 2 is a tie: to even
  CHECK(num::from_mass(0x100000100000001U) == 33554436.0F);       // and just above the tie: up
  CHECK(num::from_mass(0xFFFFFFFFFFFFFFFFU) == 0x1p33F);
  for (std::uint32_t u = 0; u <= raw(1.0F); u += 4099) {
    const float p = from_raw(u);
    const long double exact = std::ldexp(static_cast<long double>(p), 31);
    const auto mass = static_cast<long double>(num::to_mass(p));
    REQUIRE(std::fabs(mass - exact) <= 0.5L);
    if (p >= 0x1p-8F) REQUIRE(num::from_mass(num::to_mass(p)) == p);  // 24 bits fit into 31
  }
}

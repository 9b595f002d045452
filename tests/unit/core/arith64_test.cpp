#include "core/arith64.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "tests/catch.hpp"

using namespace kvatlas;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Distance in units of the last place that a double of the true value's size has. The oracle has 11 more bits.
double ulps(double got, long double want) {
  if (static_cast<long double>(got) == want) return 0.0;
  int exponent = 0;
  std::frexp(want, &exponent);
  return static_cast<double>(std::fabs((static_cast<long double>(got) - want) / std::ldexp(1.0L, std::max(exponent - 53, -1074))));
}

/// Deterministic points, evenly spread over [low, high) with a jitter of all low bits.
class Points {
 public:
  double operator()(double low, double high) {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return low + (high - low) * (static_cast<double>(state_ >> 11) * 0x1p-53);
  }

 private:
  std::uint64_t state_ = 2024;
};

}  // namespace

TEST_CASE("float64 sin and cos stay below 1 ulp up to 2^30", "[unit]") {
  static_assert(std::numeric_limits<long double>::digits >= 64, "the oracle needs 80-bit long double");
  Points point;
  double worst = 0.0;
  const auto check = [&](double x) {
    worst = std::max(worst, ulps(num::sin(x), sinl(static_cast<long double>(x))));
    worst = std::max(worst, ulps(num::cos(x), cosl(static_cast<long double>(x))));
  };
  for (const double limit : {1e-9, 1e-3, 0.785, 3.2, 100.0, 1e4, 1e6, 1e8, 0x1p30})
    for (int i = 0; i < 40'000; ++i) check(point(-limit, limit));
  for (int n = 1; n <= 100'000; n += 7) {  // next to multiples of pi/2, where reduction cancels
    const auto x = static_cast<double>(n * 1.570796326794896619231321691639751442L);
    for (const double y : {std::nextafter(x, 0.0), x, std::nextafter(x, kInf)}) check(y);
  }
  for (int n = 0; n <= 20'000; ++n) check(static_cast<double>(n));  // positions of a rotary embedding
  check(1e8);
  check(6381956970095103.0 * 0x1p-26);  // digits of the double that comes closest to a multiple of pi/2
  CAPTURE(worst);
  REQUIRE(worst < 1.0);
  CHECK(num::sin(0.0) == 0.0);
  CHECK(std::signbit(num::sin(-0.0)));
  CHECK(num::cos(0.0) == 1.0);
  CHECK(num::sin(1e-300) == 1e-300);
  CHECK(num::sin(5e-324) == 5e-324);
  CHECK(std::isnan(num::sin(kInf)));
  CHECK(std::isnan(num::cos(kNan)));
  CHECK_THROWS_AS(num::sin(1e10), std::logic_error);
}

TEST_CASE("float64 exp2 and exp stay below 1 ulp over their whole range", "[unit]") {
  Points point;
  double worst = 0.0;
  for (int i = 0; i < 300'000; ++i) {
    const double a = point(-1076.0, 1024.0);
    worst = std::max(worst, ulps(num::exp2(a), exp2l(static_cast<long double>(a))));
    const double b = point(-746.0, 709.78);
    worst = std::max(worst, ulps(num::exp(b), expl(static_cast<long double>(b))));
    const double c = point(-1.0, 1.0);
    worst = std::max(worst, ulps(num::exp2(c), exp2l(static_cast<long double>(c))));
    worst = std::max(worst, ulps(num::exp(c), expl(static_cast<long double>(c))));
  }
  CAPTURE(worst);
  REQUIRE(worst < 1.0);
  for (int n = -1074; n <= 1023; ++n) REQUIRE(num::exp2(static_cast<double>(n)) == std::ldexp(1.0, n));
  CHECK(num::exp(0.0) == 1.0);
  CHECK(num::exp(709.782712893384) == Approx(1.797693134862273e308));
  CHECK(num::exp(709.79) == kInf);
  CHECK(num::exp(-745.2) == 0.0);
  CHECK(num::exp2(1024.0) == kInf);
  CHECK(num::exp2(-1075.0) == 0.0);  // a tie: to even
  CHECK(num::exp2(std::nextafter(-1075.0, 0.0)) == 5e-324);
  for (const auto f : {static_cast<double (*)(double)>(num::exp2), static_cast<double (*)(double)>(num::exp)}) {
    CHECK(f(kInf) == kInf);
    CHECK(f(-kInf) == 0.0);
    CHECK(f(1e308) == kInf);
    CHECK(f(-1e308) == 0.0);
    CHECK(std::isnan(f(kNan)));
  }
}

TEST_CASE("float64 log2 and log stay below 1 ulp, next to 1 and among subnormals too", "[unit]") {
  Points point;
  double worst = 0.0;
  const auto check = [&](double x) {
    worst = std::max(worst, ulps(num::log2(x), log2l(static_cast<long double>(x))));
    worst = std::max(worst, ulps(num::log(x), logl(static_cast<long double>(x))));
  };
  for (int i = 0; i < 150'000; ++i) {
    check(point(0.5, 2.0));
    check(1.0 + point(-1e-4, 1e-4));
    check(std::ldexp(point(0.5, 1.0), static_cast<int>(point(-1073.0, 1024.0))));
  }
  for (double x = 1.0, y = 1.0; x < 1.0 + 0x1p-44; x = std::nextafter(x, 2.0), y = std::nextafter(y, 0.0)) check(x), check(y);
  CAPTURE(worst);
  REQUIRE(worst < 1.0);
  for (int n = -1074; n <= 1023; ++n) REQUIRE(num::log2(std::ldexp(1.0, n)) == static_cast<double>(n));
  for (const auto f : {static_cast<double (*)(double)>(num::log2), static_cast<double (*)(double)>(num::log)}) {
    CHECK(f(1.0) == 0.0);
    CHECK(f(0.0) == -kInf);
    CHECK(f(-0.0) == -kInf);
    CHECK(std::isnan(f(-1.0)));
    CHECK(f(kInf) == kInf);
    CHECK(std::isnan(f(kNan)));
  }
}

TEST_CASE("float64 pow stays below 1 ulp", "[unit]") {
  Points point;
  double worst = 0.0;
  const auto check = [&](double x, double y) {
    const long double want = powl(static_cast<long double>(x), static_cast<long double>(y));
    if (want < 0x1p1023L && want > 0x1p-1060L) worst = std::max(worst, ulps(num::pow(x, y), want));
  };
  for (int i = 0; i < 200'000; ++i) {
    check(point(0.0, 4.0), point(-300.0, 300.0));
    check(1.0 + point(-1e-6, 1e-6), point(-1e8, 1e8));
    check(std::ldexp(point(0.5, 1.0), static_cast<int>(point(-1000.0, 1000.0))), point(-1.0, 1.0));
  }
  for (const double base : {1e4, 5e5, 1e6, 8e6})  // frequencies of rotary embeddings
    for (const int dim : {64, 80, 96, 128, 256})
      for (int i = 0; i < dim; i += 2) check(base, -static_cast<double>(i) / dim);
  CAPTURE(worst);
  REQUIRE(worst < 1.0);
}

TEST_CASE("float64 pow is exact on small integers and answers like C", "[unit]") {
  for (int base = 2; base <= 10; ++base) {
    double product = 1.0;
    for (int n = 0; n <= 15; ++n, product *= base) REQUIRE(num::pow(base, n) == product);
  }
  for (const double x : {0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 3.5, 1e308, 5e-324, kInf, -kInf, kNan})
    for (const double y : {0.0, -0.0, 0.5, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 1e300, -1e300, 0x1p53, kInf, -kInf, kNan}) {
      CAPTURE(x, y);
      const double got = num::pow(x, y);
      const double want = std::pow(x, y);
      if (std::isnan(want)) {
        CHECK(std::isnan(got));
      } else {
        CHECK(std::signbit(got) == std::signbit(want));
        CHECK((got == want || std::fabs(got / want - 1.0) < 1e-15));
      }
    }
}

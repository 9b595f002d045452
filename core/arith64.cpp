#include "core/arith64.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/errors.hpp"

namespace kvatlas::num {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// A number as the unevaluated sum hi + lo, lo about 2^-53 of hi.
struct Pair {
  double hi;
  double lo;
};

/// a + b exactly.
Pair two_sum(double a, double b) {
  const double sum = a + b;
  const double part = sum - a;
  return {sum, (a - (sum - part)) + (b - part)};
}
/// a + b exactly, for |a| >= |b| or a = 0.
Pair fast_two_sum(double a, double b) {
  const double sum = a + b;
  return {sum, b - (sum - a)};
}
/// a * b exactly.
Pair two_product(double a, double b) {
  const double product = a * b;
  return {product, std::fma(a, b, -product)};
}

constexpr Pair kLn2{0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56};
constexpr Pair kTwoOverLn2{0x1.71547652b82fep+1, 0x1.777d0ffda0d24p-55};
constexpr double kLn2Top = 0x1.62e42fefa2000p-1;  // 40 bits: an exponent times this is exact
constexpr double kLn2Rest = 0x1.9ef35793c7673p-41;
constexpr double kOneOverLn2 = 0x1.71547652b82fep+0;
constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
constexpr double kHalfPi[3] = {0x1.921fb54442d18p+0, 0x1.1a62633145c07p-54, -0x1.f1976b7ed8fbcp-110};  // pi/2 to 2^-163

/// Horner's rule over fma; coefficients from the highest degree down.
template <std::size_t N>
double polynomial(const double (&coefficients)[N], double x) {
  double p = coefficients[0];
  for (std::size_t i = 1; i < N; ++i) p = std::fma(p, x, coefficients[i]);
  return p;
}

// Taylor coefficients: on these short intervals the first omitted term is below 2^-56 of the result.
constexpr double kSine[] = {  // (sin r - r) / r^3 in r^2
    -1.0 / 121645100408832000.0, 1.0 / 355687428096000.0, -1.0 / 1307674368000.0, 1.0 / 6227020800.0, -1.0 / 39916800.0,
    1.0 / 362880.0,              -1.0 / 5040.0,           1.0 / 120.0,            -1.0 / 6.0};
constexpr double kCosine[] = {  // (cos r - 1 + r^2/2) / r^4 in r^2
    -1.0 / 6402373705728000.0, 1.0 / 20922789888000.0, -1.0 / 87178291200.0, 1.0 / 479001600.0,
    -1.0 / 3628800.0,          1.0 / 40320.0,          -1.0 / 720.0,         1.0 / 24.0};
constexpr double kExponential[] = {  // (e^r - 1 - r) / r^2 in r
    1.0 / 87178291200.0, 1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
    1.0 / 40320.0,       1.0 / 5040.0,       1.0 / 720.0,       1.0 / 120.0,      1.0 / 24.0,      1.0 / 6.0, 1.0 / 2.0};
constexpr double kArtanh[] = {  // (artanh s - s - s^3/3) / s^5 in s^2
    1.0 / 27.0, 1.0 / 25.0, 1.0 / 23.0, 1.0 / 21.0, 1.0 / 19.0, 1.0 / 17.0,
    1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0,  1.0 / 7.0,  1.0 / 5.0};

struct Reduced {
  Pair angle;  // |angle| <= pi/4, to about 2^-100 absolute
  std::uint64_t quadrant;
};

/// x - n * pi/2 with pi/2 in three words. All sums but the last are exact, so cancellation next to a multiple costs nothing.
Reduced reduce(double x) {
  KV_ASSERT(std::fabs(x) <= 0x1p30, "sin and cos take |x| up to 2^30");
  const double n = std::rint(x * kTwoOverPi);
  const Pair first = two_product(n, kHalfPi[0]);
  const Pair second = two_product(n, kHalfPi[1]);
  const Pair a = two_sum(x - first.hi, -first.lo);  // the inner difference is exact: both are multiples of a unit near 0
  const Pair b = two_sum(a.hi, -second.hi);
  const double rest = (a.lo + b.lo) - second.lo - n * kHalfPi[2];
  return {fast_two_sum(b.hi, rest), static_cast<std::uint64_t>(static_cast<std::int64_t>(n)) & 3U};
}

double sine_of(const Pair& r) {
  const double square = r.hi * r.hi;
  return r.hi + std::fma(square * r.hi, polynomial(kSine, square), r.lo * (1.0 - 0.5 * square));
}
double cosine_of(const Pair& r) {
  const double square = r.hi * r.hi;
  const double half = 0.5 * square;
  const double top = 1.0 - half;
  return top + (((1.0 - top) - half) + std::fma(square * square, polynomial(kCosine, square), -(r.hi * r.lo)));
}
double by_quadrant(const Pair& r, std::uint64_t quadrant) {
  switch (quadrant) {
    case 0: return sine_of(r);
    case 1: return cosine_of(r);
    case 2: return -sine_of(r);
    default: return -cosine_of(r);
  }
}

/// 2^n for -1022 <= n <= 1023.
double power_of_two(int n) { return std::bit_cast<double>(static_cast<std::uint64_t>(1023 + n) << 52); }

/// p * 2^n for p in (1/2, 2) and -1080 <= n <= 1024; a subnormal result is rounded once.
double scaled(double p, int n) {
  if (n > 1023) return p * power_of_two(1023) * 2.0;
  if (n < -1021) return p * power_of_two(n + 64) * power_of_two(-64);
  return p * power_of_two(n);
}

/// e^(r.hi + r.lo) for |r| <= 0.35 and a normalised pair.
double exponential_of(const Pair& r) {
  const double curve = r.hi * r.hi * polynomial(kExponential, r.hi);
  return 1.0 + (r.hi + std::fma(r.lo, 1.0 + r.hi, curve));
}

/// 2^(x.hi + x.lo) for a normalised pair.
double exp2_of(const Pair& x) {
  if (x.hi >= 1025.0) return kInfinity;
  if (x.hi <= -1080.0) return 0.0;
  const double n = std::rint(x.hi);
  const double f = x.hi - n;
  const Pair product = two_product(f, kLn2.hi);
  const double product_lo = product.lo + std::fma(f, kLn2.lo, x.lo * kLn2.hi);  // x.lo counts in ulps of x.hi, not of f
  return scaled(exponential_of(two_sum(product.hi, product_lo)), static_cast<int>(n));
}

struct Split {
  double exponent;
  Pair half_log;  // ln(m) / 2 for x = 2^exponent * m, m in [sqrt(1/2), sqrt(2)), to about 2^-66 of itself
};

/// For finite x > 0.
Split split_log(double x) {
  double exponent = 0.0;
  if (x < 0x1p-1022) {
    x *= 0x1p54;
    exponent = -54.0;
  }
  constexpr std::uint64_t kRootHalf = 0x3FE6A09E667F3BCDULL;
  const std::uint64_t shifted = std::bit_cast<std::uint64_t>(x) - kRootHalf;
  exponent += static_cast<double>(static_cast<std::int64_t>(shifted) >> 52);
  const double f = std::bit_cast<double>((shifted & 0x000FFFFFFFFFFFFFULL) + kRootHalf) - 1.0;  // exact
  // ln(1 + f) / 2 = artanh(s), s = f / (2 + f); s and s^3 / 3 as pairs, the rest is small enough for one word.
  const Pair d = fast_two_sum(2.0, f);
  const double s = f / d.hi;
  const double s_lo = (std::fma(-s, d.hi, f) - s * d.lo) / d.hi;
  const Pair z = two_product(s, s);
  const double z_lo = std::fma(2.0 * s, s_lo, z.lo);
  const Pair cube = two_product(z.hi, s);
  const double cube_lo = cube.lo + std::fma(z.hi, s_lo, z_lo * s);
  constexpr Pair kThird{0x1.5555555555555p-2, 0x1.5555555555555p-56};
  const Pair third = two_product(cube.hi, kThird.hi);
  const double third_lo = third.lo + std::fma(cube.hi, kThird.lo, cube_lo * kThird.hi);
  const double rest = cube.hi * z.hi * polynomial(kArtanh, z.hi);
  const Pair sum = fast_two_sum(s, third.hi);
  return {exponent, fast_two_sum(sum.hi, sum.lo + ((s_lo + third_lo) + rest))};
}

/// log2(x) for finite x > 0, to about 2^-64 of itself.
Pair log2_of(double x) {
  const Split split = split_log(x);
  const Pair product = two_product(split.half_log.hi, kTwoOverLn2.hi);
  const double product_lo = product.lo + std::fma(split.half_log.hi, kTwoOverLn2.lo, split.half_log.lo * kTwoOverLn2.hi);
  const Pair sum = two_sum(split.exponent, product.hi);
  return fast_two_sum(sum.hi, sum.lo + product_lo);
}

bool is_integer(double y) { return std::rint(y) == y; }
bool is_odd(double y) { return is_integer(y) && std::fabs(y) < 0x1p53 && !is_integer(0.5 * y); }

/// |x|^y for finite |x| > 0 and finite y != 0.
double pow_positive(double x, double y) {
  const Pair log = log2_of(x);
  const double hi = y * log.hi;
  if (hi >= 1025.0) return kInfinity;
  if (hi <= -1080.0) return 0.0;
  const double lo = std::fma(y, log.hi, -hi) + y * log.lo;
  return exp2_of(fast_two_sum(hi, lo));
}

}  // namespace

double sin(double x) {
  if (!std::isfinite(x)) return kNaN;
  if (x == 0.0) return x;  // keeps the sign of zero
  const Reduced r = reduce(x);
  return by_quadrant(r.angle, r.quadrant);
}

double cos(double x) {
  if (!std::isfinite(x)) return kNaN;
  const Reduced r = reduce(x);
  return by_quadrant(r.angle, (r.quadrant + 1) & 3U);
}

double exp2(double x) {
  if (std::isnan(x)) return x;
  return exp2_of({x, 0.0});
}

double exp(double x) {
  if (std::isnan(x)) return x;
  if (x >= 711.0) return kInfinity;
  if (x <= -748.0) return 0.0;
  const double n = std::rint(x * kOneOverLn2);
  const Pair top = two_sum(x, -n * kLn2Top);
  const Pair r = two_sum(top.hi, -n * kLn2Rest);
  return scaled(exponential_of({r.hi, r.lo + top.lo}), static_cast<int>(n));
}

double log2(double x) {
  if (std::isnan(x) || x == kInfinity) return x;
  if (x == 0.0) return -kInfinity;
  if (x < 0.0) return kNaN;
  return log2_of(x).hi;
}

double log(double x) {
  if (std::isnan(x) || x == kInfinity) return x;
  if (x == 0.0) return -kInfinity;
  if (x < 0.0) return kNaN;
  const Split split = split_log(x);
  const Pair sum = two_sum(split.exponent * kLn2Top, 2.0 * split.half_log.hi);
  return sum.hi + (sum.lo + std::fma(split.exponent, kLn2Rest, 2.0 * split.half_log.lo));
}

double pow(double x, double y) {
  if (y == 0.0 || x == 1.0) return 1.0;
  if (std::isnan(x) || std::isnan(y)) return kNaN;
  const double size = std::fabs(x);
  if (std::isinf(y)) {
    if (size == 1.0) return 1.0;
    return (size > 1.0) == (y > 0.0) ? kInfinity : 0.0;
  }
  const bool negative = std::signbit(x) && is_odd(y);
  if (size == 0.0 || size == kInfinity) {
    const double limit = (size == 0.0) == (y > 0.0) ? 0.0 : kInfinity;
    return negative ? -limit : limit;
  }
  if (x < 0.0 && !is_integer(y)) return kNaN;
  const double power = pow_positive(size, y);
  return negative ? -power : power;
}

}  // namespace kvatlas::num

#include "reference/primitives/angles.hpp"

#include <cmath>

#include "core/arith64.hpp"

namespace kvatlas {

double angle_of(double x, double y) {
  constexpr double kPi = 3.14159265358979323846, kHalfPi = kPi / 2;
  const double ax = std::fabs(x), ay = std::fabs(y);
  if (ax == 0.0 && ay == 0.0) return 0.0;
  const double low = ax < ay ? ax : ay, high = ax < ay ? ay : ax;
  const double t = low / high;
  // A rough arc tangent on [0, 1], then two steps: tan(angle - a) = (t cos a - sin a) / (cos a + t sin a).
  double a = t / (1.0 + 0.28125 * t * t);
  for (int step = 0; step < 2; ++step) {
    const double c = num::cos(a), s = num::sin(a), rest = (t * c - s) / (c + t * s);
    a += rest - rest * rest * rest / 3.0;
  }
  if (ax < ay) a = kHalfPi - a;
  if (x < 0.0) a = kPi - a;
  return y < 0.0 ? -a : a;
}

}  // namespace kvatlas

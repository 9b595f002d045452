// Canonical float64 functions for tables and calibration, host only: the same bits with every compiler, no libm.
// Each bound was measured against an 80-bit oracle and is asserted by its test.
#pragma once

namespace kvatlas::num {

/// Sine and cosine of x radians, below 1 ulp for |x| <= 2^30; NaN for infinity and NaN. Larger |x| is our own bug.
double sin(double x);
double cos(double x);

/// 2^x and e^x, below 1 ulp; subnormal results below 1 subnormal unit. 0 and +inf beyond the range.
double exp2(double x);
double exp(double x);

/// Logarithms of x > 0, below 1 ulp, subnormals included; exact where the result is an integer (log2) or 0.
/// -inf for 0, NaN for x < 0.
double log2(double x);
double log(double x);

/// x^y, below 1 ulp, with C's answers for zeros, infinities, NaN and negative x (NaN unless y is an integer).
double pow(double x, double y);

}  // namespace kvatlas::num

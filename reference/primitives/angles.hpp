// The angle of a point in the plane, by our own sine and cosine: the same bits on every machine.
#pragma once

namespace kvatlas {

/// Radians in (-pi, pi], 0 for the origin; error of some 1e-16. x and y are finite.
double angle_of(double x, double y);

}  // namespace kvatlas

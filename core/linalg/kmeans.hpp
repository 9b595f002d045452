// k-means with a stated start, order and treatment of ties, so that a codebook has the same bits on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/linalg/matrix.hpp"
#include "core/philox.hpp"

namespace kvatlas::linalg {

struct KMeansOptions {
  enum class Start : std::uint8_t {
    plus_plus,  // drawn with chances proportional to weight, later to weight * squared distance to the nearest center
    even,       // center c is point floor(c * points / clusters)
  };
  std::size_t clusters = 1;
  int iterations = 20;               // assignments followed by new means; ends early only where nothing would change
  Start start = Start::plus_plus;
  RandomStream stream{};             // plus_plus draws number c of this stream for center c
  std::span<const double> weights{};  // one for each point, not negative; empty = all 1
};

struct KMeans {
  Matrix centers;                    // [clusters, dim]
  std::vector<std::int32_t> labels;  // nearest center of each point after the last new means
  double error = 0.0;                // sum of weight * squared distance, in ascending point
};

/// Lloyd's algorithm on points [n, dim]. A squared distance sums the squared differences in ascending channel with fma;
/// the nearest center is the lowest of equals; a mean sums its points in ascending point with fma and divides by the sum
/// of weights; a cluster without weight keeps its center. plus_plus takes the first point at which the running sum of
/// chances exceeds uniform * total; if no chance is left (all points are centers), the lowest point not yet taken.
/// throws   InvalidArgument if clusters is 0 or above n, a number is not finite, or a weight is negative
KMeans kmeans(const Matrix& points, const KMeansOptions& options);

/// The nearest center of each point by the rule of `kmeans`.
std::vector<std::int32_t> nearest_centers(const Matrix& points, const Matrix& centers);

}  // namespace kvatlas::linalg

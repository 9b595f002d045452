#include "core/linalg/kmeans.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/errors.hpp"

namespace kvatlas::linalg {

namespace {

struct Assignment {
  std::vector<std::int32_t> labels;
  std::vector<double> distances;  // squared, to the nearest center
};

/// Distances to all centers of a point run side by side; each still sums in ascending channel.
Assignment assign(const Matrix& points, const Matrix& centers) {
  const Matrix by_channel = transpose(centers);
  Assignment out{std::vector<std::int32_t>(points.rows()), std::vector<double>(points.rows())};
  std::vector<double> distance(centers.rows());
  for (std::size_t i = 0; i < points.rows(); ++i) {
    std::fill(distance.begin(), distance.end(), 0.0);
    for (std::size_t channel = 0; channel < points.cols(); ++channel) {
      const double x = points(i, channel);
      const double* center = by_channel.row(channel).data();
      for (std::size_t c = 0; c < distance.size(); ++c) {
        const double difference = x - center[c];
        distance[c] = fma(difference, difference, distance[c]);
      }
    }
    const auto nearest = std::min_element(distance.begin(), distance.end());  // the first of equals
    out.labels[i] = static_cast<std::int32_t>(nearest - distance.begin());
    out.distances[i] = *nearest;
  }
  return out;
}

double squared_distance(std::span<const double> x, std::span<const double> y) {
  double sum = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) sum = fma(x[i] - y[i], x[i] - y[i], sum);
  return sum;
}

/// The first index at which the running sum exceeds uniform * total; if the total is 0 the first that is not taken.
std::size_t draw(const std::vector<double>& chances, const std::vector<bool>& taken, double uniform) {
  double total = 0.0;
  for (const double chance : chances) total += chance;
  double running = 0.0;
  for (std::size_t i = 0; i < chances.size(); ++i) {
    running += chances[i];
    if (running > uniform * total) return i;
  }
  return static_cast<std::size_t>(std::find(taken.begin(), taken.end(), false) - taken.begin());
}

Matrix first_centers(const Matrix& points, const KMeansOptions& options, std::span<const double> weights) {
  const std::size_t n = points.rows();
  Matrix centers(options.clusters, points.cols());
  std::vector<double> chances(weights.begin(), weights.end());
  std::vector<double> nearest(n, std::numeric_limits<double>::infinity());
  std::vector<bool> taken(n, false);
  for (std::size_t c = 0; c < options.clusters; ++c) {
    const std::size_t point = options.start == KMeansOptions::Start::even
                                  ? c * n / options.clusters
                                  : draw(chances, taken, static_cast<double>(random_uniform(options.stream, c)));
    std::copy_n(points.row(point).begin(), points.cols(), centers.row(c).begin());
    if (options.start == KMeansOptions::Start::even) continue;
    taken[point] = true;
    for (std::size_t i = 0; i < n; ++i) {
      nearest[i] = std::min(nearest[i], squared_distance(points.row(i), centers.row(c)));
      chances[i] = weights[i] * nearest[i];
    }
  }
  return centers;
}

Matrix means(const Matrix& points, const std::vector<std::int32_t>& labels, std::span<const double> weights,
             const Matrix& before) {
  Matrix sums(before.rows(), before.cols());
  std::vector<double> totals(before.rows(), 0.0);
  for (std::size_t i = 0; i < points.rows(); ++i) {
    const auto label = static_cast<std::size_t>(labels[i]);
    totals[label] += weights[i];
    const std::span<const double> x = points.row(i);
    const std::span<double> sum = sums.row(label);
    for (std::size_t d = 0; d < x.size(); ++d) sum[d] = fma(weights[i], x[d], sum[d]);
  }
  for (std::size_t c = 0; c < sums.rows(); ++c)
    for (std::size_t d = 0; d < sums.cols(); ++d)
      sums(c, d) = totals[c] > 0.0 ? sums(c, d) / totals[c] : before(c, d);
  return sums;
}

void require_options(const Matrix& points, const KMeansOptions& options) {
  if (options.clusters < 1 || options.clusters > points.rows())
    throw InvalidArgument(cat("clusters is ", options.clusters, ", must be between 1 and points (", points.rows(), ")"));
  if (options.iterations < 0) throw InvalidArgument(cat("iterations is ", options.iterations, ", must not be negative"));
  require_finite(points, "points");
  if (options.weights.empty()) return;
  if (options.weights.size() != points.rows())
    throw InvalidArgument(cat("weights has ", options.weights.size(), " entries, must have one for each point (",
                              points.rows(), ")"));
  for (const double w : options.weights)
    if (!(w >= 0.0 && w <= 0x1p500)) throw InvalidArgument(cat("weight is ", w, ", must be finite and not negative"));
}

}  // namespace

KMeans kmeans(const Matrix& points, const KMeansOptions& options) {
  require_options(points, options);
  const std::vector<double> ones(options.weights.empty() ? points.rows() : 0, 1.0);
  const std::span<const double> weights = options.weights.empty() ? std::span<const double>(ones) : options.weights;
  Matrix centers = first_centers(points, options, weights);
  Assignment nearest = assign(points, centers);
  for (int i = 0; i < options.iterations; ++i) {
    Matrix moved = means(points, nearest.labels, weights, centers);
    if (moved == centers) break;  // a fixed point: further iterations repeat it
    centers = std::move(moved);
    nearest = assign(points, centers);
  }
  KMeans out{std::move(centers), std::move(nearest.labels), 0.0};
  for (std::size_t i = 0; i < points.rows(); ++i) out.error = fma(weights[i], nearest.distances[i], out.error);
  return out;
}

std::vector<std::int32_t> nearest_centers(const Matrix& points, const Matrix& centers) {
  if (centers.rows() < 1 || centers.cols() != points.cols())
    throw InvalidArgument(cat("centers is ", centers.rows(), " x ", centers.cols(), ", must have at least one row of ",
                              points.cols(), " channels"));
  require_finite(points, "points");
  require_finite(centers, "centers");
  return assign(points, centers).labels;
}

}  // namespace kvatlas::linalg

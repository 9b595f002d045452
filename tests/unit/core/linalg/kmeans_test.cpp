#include "core/linalg/kmeans.hpp"

#include <cmath>
#include <set>
#include <vector>

#include "core/errors.hpp"
#include "tests/catch.hpp"
#include "tests/unit/core/linalg/cases.hpp"

namespace {

using namespace kvatlas;
using namespace kvatlas::linalg;
using namespace kvatlas::linalg::test;
using Start = KMeansOptions::Start;

TEST_CASE("two groups on a line get their means", "[unit]") {
  const Matrix points(6, 1, {0, 1, 2, 10, 11, 12});
  for (const Start start : {Start::even, Start::plus_plus}) {
    const KMeans k = kmeans(points, {.clusters = 2, .start = start});
    REQUIRE(std::set<double>(k.centers.values().begin(), k.centers.values().end()) == std::set<double>{1, 11});
    REQUIRE(k.error == 4.0);
    REQUIRE((k.labels[0] == k.labels[2] && k.labels[3] == k.labels[5] && k.labels[0] != k.labels[3]));
  }
  REQUIRE(kmeans(points, {.clusters = 2, .start = Start::even}).labels == std::vector<std::int32_t>{0, 0, 0, 1, 1, 1});
}

TEST_CASE("a point between two centers belongs to the lower index", "[unit]") {
  REQUIRE(nearest_centers(Matrix(3, 1, {-1, 0, 1}), Matrix(2, 1, {1, -1})) == std::vector<std::int32_t>{1, 0, 0});
  REQUIRE(nearest_centers(Matrix(1, 2, {1, 1}), Matrix(3, 2, {0, 0, 1, 1, 1, 1})) == std::vector<std::int32_t>{1});
}

TEST_CASE("each iteration lowers the error or leaves it", "[unit]") {
  const Matrix points = random_matrix(200, 8, 1);
  double before = 1e300;
  for (int iterations = 0; iterations < 12; ++iterations) {
    const double error = kmeans(points, {.clusters = 9, .iterations = iterations}).error;
    REQUIRE(error <= before * (1.0 + 200 * kEps));
    before = error;
  }
}

TEST_CASE("the result is labels of nearest centers, and their error", "[unit]") {
  const Matrix points = random_matrix(150, 5, 2);
  const KMeans k = kmeans(points, {.clusters = 7, .iterations = 3});
  REQUIRE(k.labels == nearest_centers(points, k.centers));
  double error = 0.0;
  for (std::size_t i = 0; i < points.rows(); ++i) {
    double distance = 0.0;
    for (std::size_t d = 0; d < 5; ++d) {
      const double difference = points(i, d) - k.centers(static_cast<std::size_t>(k.labels[i]), d);
      distance = std::fma(difference, difference, distance);
    }
    error = std::fma(1.0, distance, error);
  }
  REQUIRE(k.error == error);
}

TEST_CASE("as many clusters as points leave no error", "[unit]") {
  const Matrix points = random_matrix(20, 3, 3);
  REQUIRE(kmeans(points, {.clusters = 20}).error == 0.0);
  REQUIRE(kmeans(points, {.clusters = 20, .start = Start::even}).centers == points);
}

TEST_CASE("a cluster that wins no point keeps its center", "[unit]") {
  const Matrix same(4, 1, {5, 5, 5, 5});
  const KMeans k = kmeans(same, {.clusters = 3});
  REQUIRE(k.centers == Matrix(3, 1, {5, 5, 5}));
  REQUIRE(k.labels == std::vector<std::int32_t>{0, 0, 0, 0});
}

TEST_CASE("weights count as repeated points", "[unit]") {
  const Matrix points(4, 1, {0, 3, 10, 14});
  const std::vector<double> weights = {2, 1, 1, 3};
  const KMeans weighted = kmeans(points, {.clusters = 2, .start = Start::even, .weights = weights});
  REQUIRE(weighted.centers == Matrix(2, 1, {1, 13}));
  REQUIRE(weighted.error == 2 + 4 + 9 + 3);
  const std::vector<double> one_sided = {0, 0, 1, 0};  // points without weight pull no center and cost nothing
  const KMeans single = kmeans(points, {.clusters = 1, .weights = one_sided});
  REQUIRE(single.centers == Matrix(1, 1, {10}));
  REQUIRE(single.error == 0.0);
}

TEST_CASE("the stream decides the start and nothing else does", "[unit]") {
  const Matrix points = random_matrix(300, 4, 5);
  const KMeansOptions options{.clusters = 12, .iterations = 2, .stream = {.seed = 1}};
  KMeansOptions other = options;
  other.stream.seed = 2;
  REQUIRE(kmeans(points, options).centers == kmeans(points, options).centers);
  REQUIRE_FALSE(kmeans(points, options).centers == kmeans(points, other).centers);
}

TEST_CASE("far groups are each found by k-means++", "[unit]") {
  Matrix points = random_matrix(160, 2, 6);
  for (std::size_t i = 0; i < 160; ++i) points(i, 0) += 1e6 * static_cast<double>(i % 8);
  const KMeans k = kmeans(points, {.clusters = 8, .iterations = 5});
  for (std::size_t i = 8; i < 160; ++i) REQUIRE(k.labels[i] == k.labels[i % 8]);
  REQUIRE(std::set<std::int32_t>(k.labels.begin(), k.labels.end()).size() == 8);
}

TEST_CASE("k-means refuses what cannot be clustered", "[unit]") {
  const Matrix points(3, 2);
  REQUIRE_THROWS_WITH(kmeans(points, {.clusters = 4}), "clusters is 4, must be between 1 and points (3)");
  REQUIRE_THROWS_WITH(kmeans(points, {.clusters = 0}), "clusters is 0, must be between 1 and points (3)");
  REQUIRE_THROWS_WITH(kmeans(points, {.clusters = 1, .iterations = -1}), "iterations is -1, must not be negative");
  REQUIRE_THROWS_WITH(kmeans(with_nan(3, 2), {.clusters = 1}), "points entry (0, 1) is nan, must be finite and at most 2^500");
  const std::vector<double> two = {1, 1}, negative = {1, -1, 1};
  REQUIRE_THROWS_WITH(kmeans(points, {.clusters = 1, .weights = two}),
                      "weights has 2 entries, must have one for each point (3)");
  REQUIRE_THROWS_WITH(kmeans(points, {.clusters = 1, .weights = negative}), "weight is -1, must be finite and not negative");
  REQUIRE_THROWS_WITH(nearest_centers(points, Matrix(2, 3)), "centers is 2 x 3, must have at least one row of 2 channels");
}

}  // namespace

// The Pareto front of stored points over two figures, each in its own sense (less time, more tokens).
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "sweeps/quality_lookup.hpp"

namespace kvatlas::sweep {

/// Places of the points that no other point beats: at least as good in both, better in one. Equal points are all on it.
/// points   (x, y) without NaN
/// returns  ascending places
std::vector<std::size_t> pareto_front(const std::vector<std::pair<double, double>>& points, bool x_higher, bool y_higher);

struct ParetoQuery {
  std::string x, y;            // columns with a sense (sweeps/where.hpp)
  std::string where;           // restricted conditions; points that do not fit memory are left out unless `fits` is named
  std::optional<double> min_quality{};   // least retained share of the plain cache's quality, 0 to 1
  std::string quality_evidence = "mp";  // accepted grades
  QualityEvidence evidence{};            // none: points say nothing of quality, and a limit knows `full` alone
};

/// Points on the front, by x from best to worst, as JSON objects with every column of a point, its key, on_front and quality.
/// Points whose x or y is unknown take no part. Under a limit the front is that of points known to keep it. Points of unknown quality
/// that would be on it if they kept it too follow with on_front null: their quality's source is the command that would settle it.
/// throws InvalidArgument for the query, IoError for the store
std::vector<nlohmann::json> pareto(const std::filesystem::path& store, const ParetoQuery& query);

/// Points that satisfy the conditions, ordered by key, at most `limit`.
std::vector<nlohmann::json> select_points(const std::filesystem::path& store, const std::string& where, std::int64_t limit);

}  // namespace kvatlas::sweep

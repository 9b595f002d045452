// The second look of recommend: its best candidates served request by request, and ranked anew by what comes out.
#pragma once

#include "sweeps/recommend.hpp"

namespace kvatlas::sweep {

/// Candidates that are ranked anew.
inline constexpr std::size_t kRerankedFirst = 20;

/// Serves the workload with a recipe in the serving simulator. Without a rate and with an SLO the requests in flight are lowered until
/// nine of ten requests keep it. Nothing when not even one fits.
std::optional<Served> served(const RecommendRequest& request, const Recipe& recipe, std::int64_t concurrency);

/// `ranked` is in the order of the closed form; its first ones are served and sorted by their served requests/s, ties as they were.
/// Settings that speak for their method are served too, wherever they stand, so that both figures can be shown.
void rerank(const RecommendRequest& request, std::vector<Recommendation>& ranked);

}  // namespace kvatlas::sweep

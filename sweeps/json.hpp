// JSON of sweep results for the command line and other doors, with the keys of their contract.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "sweeps/merge.hpp"
#include "sweeps/recommend.hpp"
#include "sweeps/runner.hpp"

namespace kvatlas::sweep {

/// {points, stored, skipped, infeasible, seconds, points_per_s, db, interrupted, left_out}; left_out has a sentence for each setting and each released plan
/// that the sweep goes without; points_per_s is null when nothing was stored. db is null without a store, and what was evaluated in a second is then evaluated_per_s.
nlohmann::json to_json(const SweepReport& report, const std::optional<std::string>& db);
/// {rows, conflicts, examples, written, provenance}
nlohmann::json to_json(const MergeReport& report);
/// {changed:[{key, configuration, context, batch, worst, figures:[...]; of a workload also prompt, output}], changed_count, equal, only_a, only_b, provenance}
nlohmann::json to_json(const DiffReport& report);
/// {recommendations:[{rank, method, params, ...}], excluded, uncertain, binds, settle_with:{recipe, command, expected_regret,
/// expected_regret_after}, advised:{recipe, rank, why}}; deployable first, then research
nlohmann::json to_json(const RecommendReport& report);
/// {value, grade, model, proxy, source, provenance}: null where nothing is known, `source` then is the command that would settle it
nlohmann::json to_json(const Quality& quality);
/// One row of it.
nlohmann::json to_json(const Recommendation& recommendation);

}  // namespace kvatlas::sweep

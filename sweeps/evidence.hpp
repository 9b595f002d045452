// Evidence from outside the sweep that goes into its store: judged claims, and predictions beside measurements.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "simulator/calibration.hpp"
#include "simulator/measurements.hpp"
#include "simulator/validate.hpp"

namespace kvatlas::sweep {

/// A published figure beside ours, as `kvatlas claims` judges it.
struct ClaimRow {
  std::string method, metric, unit, setup, verdict, why, source, provenance, change;
  std::optional<double> published, ours, ours_if;
};

/// Replaces the claims of a store. throws IoError when the file is no store, or one of another version of the code
void store_claims(const std::filesystem::path& path, const std::vector<ClaimRow>& rows);

/// Replaces the validation of a store: the summary, and every measured row with its prediction and 80% interval.
/// source       what the measured rows come from, for people
/// provenance   of the measured rows: "published" for the shipped sample, "measured" for files of the user's
/// throws   IoError as store_claims does, InvalidArgument for a report with two rows of one place; the store keeps what it had
void store_validation(const std::filesystem::path& path, const sim::Calibration& calibration, const std::vector<sim::Measurement>& measured,
                      const sim::ValidationReport& report, const std::string& source, const std::string& provenance);

}  // namespace kvatlas::sweep

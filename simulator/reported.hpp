// Speed of compressed caches as users, engines and papers report it, beside ours: single figures from issue threads and READMEs, each
// a method against its baseline on one machine. Nothing is fitted to them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::sim {

/// One reported figure beside ours. Speeds are over the baseline's: above 1 the method is the faster one.
struct ReportedFigure {
  std::string gpu, framework, model, method, baseline, metric, batch, context, source;  // as the file writes them
  double published = 0;
  double predicted = 0;
  double low = 0, high = 0;  // the method's own 80% interval over the baseline's prediction: errors that both share cancel
  std::string how{};         // what was computed
  bool direction_right() const { return (published > 1) == (predicted > 1); }
  bool inside() const { return published >= low && published <= high; }
};

/// A row that nothing can be computed for, and why.
struct UnreportedFigure {
  std::string row, why;
};

struct ReportedCheck {
  std::vector<ReportedFigure> figures{};
  std::vector<UnreportedFigure> left_out{};
  int directions_right() const;
  int inside() const;
};

/// Reads a table in the columns of compressed_kv_reported.csv and computes every row whose setup is stated and described here.
/// throws InvalidArgument naming file, line and field
ReportedCheck check_reported(std::string_view csv, std::string_view name);

/// Counts, every figure, every miss and what was left out, for people.
std::string to_text(const ReportedCheck& check);

}  // namespace kvatlas::sim

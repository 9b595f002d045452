// Comparison of two stores, point by point and workload by workload.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "core/errors.hpp"
#include "sweeps/merge.hpp"
#include "sweeps/store.hpp"

namespace kvatlas::sweep {

namespace {

std::string shown(const Statement& s, int at) {
  if (s.is_null(at)) return "null";
  return s.is_text(at) ? std::string(s.text(at)) : cat(s.number(at));
}

double relative(const Statement& s, int a, int b) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  if (s.is_text(a) || s.is_null(a) || s.is_null(b)) return kInfinite;  // asked only where the two differ
  const double from = s.number(a), to = s.number(b);
  if (from == to) return 0;
  return from == 0 ? kInfinite : (to - from) / std::abs(from);
}

/// Worst first; places of equal change by key, so that the order is the same every time.
void sort_worst_first(std::vector<ChangedPoint>& changed) {
  std::sort(changed.begin(), changed.end(), [](const ChangedPoint& l, const ChangedPoint& r) { return l.worst != r.worst ? l.worst > r.worst : l.key < r.key; });
}

/// A table whose rows are compared: which columns are figures, and where a row's place (context, batch, prompt, output) is from.
struct Compared {
  const char* table;
  std::vector<std::string> figures;
  const char* place;  // four columns
  const char* joins;  // what `place` needs beside the row `a`
};

std::vector<Compared> compared_tables() {
  Compared points{.table = "predictions", .figures = {}, .place = "a.context, a.batch, NULL, NULL", .joins = ""};
  for (const std::string& c : figure_columns())
    if (c != "context" && c != "batch") points.figures.push_back(c);
  return {std::move(points),
          {.table = "workload_predictions", .figures = workload_figure_columns(), .place = "w.prompt + w.output, coalesce(w.concurrency, 0), w.prompt, w.output",
           .joins = " JOIN main.workloads w ON w.id = a.workload"}};
}

void compare(Database& db, const Compared& what, double threshold, std::size_t limit, DiffReport& report) {
  std::string columns, same;
  for (const std::string& c : what.figures) {
    columns += cat(", a.", c, ", b.", c);
    same += cat(same.empty() ? "" : " AND ", "a.", c, " IS b.", c);
  }
  const std::int64_t both = db.integer(cat("SELECT count(*) FROM main.", what.table, " a JOIN other.", what.table, " b ON a.key = b.key"));
  report.only_a += db.integer(cat("SELECT count(*) FROM main.", what.table)) - both;
  report.only_b += db.integer(cat("SELECT count(*) FROM other.", what.table)) - both;
  Statement s(db, cat("SELECT a.key, c.canonical, ", what.place, columns, " FROM main.", what.table, " a JOIN other.", what.table, " b ON a.key = b.key "
                      "JOIN main.configurations c ON c.id = a.configuration", what.joins, " WHERE NOT (", same, ")"));
  std::int64_t past = 0;
  while (s.step()) {
    ChangedPoint p{.key = hex(s.key(0)), .configuration = std::string(s.text(1)), .context = s.integer(2), .batch = static_cast<int>(s.integer(3))};
    if (!s.is_null(4)) p.prompt = s.integer(4);
    if (!s.is_null(5)) p.output = s.integer(5);
    for (std::size_t i = 0; i < what.figures.size(); ++i) {
      const int at = 6 + 2 * static_cast<int>(i);
      const std::string from = shown(s, at), to = shown(s, at + 1);
      if (from == to) continue;
      const double change = relative(s, at, at + 1);
      p.figures.push_back({what.figures[i], from, to, change});
      p.worst = std::max(p.worst, std::abs(change));
    }
    if (p.worst <= threshold) continue;
    ++past;
    report.changed.push_back(std::move(p));
    if (report.changed.size() > 2 * limit) {  // no more memory than twice the limit
      sort_worst_first(report.changed);
      report.changed.resize(limit);
    }
  }
  report.changed_count += past;
  report.equal += both - past;
}

}  // namespace

DiffReport diff_stores(const std::filesystem::path& a, const std::filesystem::path& b, double threshold, std::size_t limit) {
  if (!(threshold >= 0) || !std::isfinite(threshold)) throw InvalidArgument(cat("threshold is ", threshold, ", must be a share from 0 (0.01 is 1 %)"));
  std::optional<Database> db;
  open_for_reading(db, b);
  open_for_reading(db, a);
  {
    const std::string name = b.string();
    Statement s(*db, "ATTACH ? AS other");
    s.bind(1, std::string_view(name)).run();
  }
  DiffReport report;
  for (const Compared& table : compared_tables()) compare(*db, table, threshold, limit, report);
  sort_worst_first(report.changed);
  if (report.changed.size() > limit) report.changed.resize(limit);
  return report;
}

}  // namespace kvatlas::sweep

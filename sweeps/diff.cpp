// Comparison of two stores, point by point.
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
  std::vector<std::string> figures;
  for (const std::string& c : figure_columns())
    if (c != "context" && c != "batch") figures.push_back(c);
  std::string columns, same;
  for (const std::string& c : figures) {
    columns += cat(", a.", c, ", b.", c);
    same += cat(same.empty() ? "" : " AND ", "a.", c, " IS b.", c);
  }
  DiffReport report;
  const std::int64_t both = db->integer("SELECT count(*) FROM main.predictions a JOIN other.predictions b ON a.key = b.key");
  report.only_a = db->integer("SELECT count(*) FROM main.predictions") - both;
  report.only_b = db->integer("SELECT count(*) FROM other.predictions") - both;
  Statement s(*db, cat("SELECT a.key, c.canonical, a.context, a.batch", columns, " FROM main.predictions a JOIN other.predictions b ON a.key = b.key "
                       "JOIN main.configurations c ON c.id = a.configuration WHERE NOT (", same, ")"));
  while (s.step()) {
    ChangedPoint p{.key = hex(s.key(0)), .configuration = std::string(s.text(1)), .context = s.integer(2), .batch = static_cast<int>(s.integer(3)), .figures = {}};
    for (std::size_t i = 0; i < figures.size(); ++i) {
      const int at = 4 + 2 * static_cast<int>(i);
      const std::string from = shown(s, at), to = shown(s, at + 1);
      if (from == to) continue;
      const double change = relative(s, at, at + 1);
      p.figures.push_back({figures[i], from, to, change});
      p.worst = std::max(p.worst, std::abs(change));
    }
    if (p.worst <= threshold) continue;
    ++report.changed_count;
    report.changed.push_back(std::move(p));
    // Worst first, and no more memory than twice the limit.
    if (report.changed.size() >= 2 * limit + 1) {
      std::sort(report.changed.begin(), report.changed.end(), [](const ChangedPoint& l, const ChangedPoint& r) { return l.worst != r.worst ? l.worst > r.worst : l.key < r.key; });
      report.changed.resize(limit);
    }
  }
  std::sort(report.changed.begin(), report.changed.end(), [](const ChangedPoint& l, const ChangedPoint& r) { return l.worst != r.worst ? l.worst > r.worst : l.key < r.key; });
  if (report.changed.size() > limit) report.changed.resize(limit);
  report.equal = both - report.changed_count;
  return report;
}

}  // namespace kvatlas::sweep

// diff: points whose figures differ between two stores; exit code 1 when one does by more than the threshold.
#include <fmt/core.h>
#include <ostream>

#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "sweeps/json.hpp"
#include "sweeps/merge.hpp"

namespace kvatlas::cli {

namespace {

const Usage& diff_usage() {
  static const Usage u{.command = "diff", .positional = "A B", .least = 2, .most = 2,
                       .example = "kvatlas diff before.sqlite after.sqlite --threshold 0.01",
                       .options = {Option::number("threshold", 0, 1e6, "relative change that still counts as equal: 0.01 is 1 %", "0"),
                                   Option::size("limit", 1, 1 << 30, "points to print, worst first", "20")}};
  return u;
}

}  // namespace

int run_diff(const Arguments& args, const Streams& io) {
  const auto parsed = parse(diff_usage(), args, io);
  if (!parsed) return kDone;
  const auto& names = parsed->positional();
  const sweep::DiffReport report = sweep::diff_stores(names[0], names[1], parsed->number("threshold"), static_cast<std::size_t>(parsed->integer("limit")));
  if (parsed->json()) {
    print(io, Json(sweep::to_json(report)));
  } else {
    Table table({{"point"}, {"context", Align::right}, {"batch", Align::right}, {"figure"}, {"A", Align::right}, {"B", Align::right}, {"change", Align::right}});
    for (const sweep::ChangedPoint& p : report.changed)
      for (const sweep::FigureChange& f : p.figures)
        table.add({p.key.substr(0, 12), cat(p.context), cat(p.batch), f.figure, f.a, f.b, fmt::format("{:+.3g}%", 100 * f.change)});
    if (!table.empty()) table.print(io.out);
    io.out << spell_count(static_cast<double>(report.changed_count)) << " points changed, " << spell_count(static_cast<double>(report.equal))
           << " equal, only in A " << spell_count(static_cast<double>(report.only_a)) << ", only in B " << spell_count(static_cast<double>(report.only_b)) << "\n";
  }
  return report.changed_count > 0 ? kFailed : kDone;
}

}  // namespace kvatlas::cli

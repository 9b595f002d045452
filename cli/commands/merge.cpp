// merge: the stores of shards become one; figures of a point that two of them hold must be equal, bit for bit.
#include "sweeps/merge.hpp"

#include <ostream>

#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "sweeps/json.hpp"

namespace kvatlas::cli {

namespace {

const Usage& merge_usage() {
  static const Usage u{.command = "merge", .positional = "OUT IN...", .least = 2, .most = 4096,
                       .example = "kvatlas merge atlas.sqlite shard1.sqlite shard2.sqlite",
                       .options = {Option::flag("force", "merge other versions of the code, and conflicts: the store named first wins")}};
  return u;
}

}  // namespace

int run_merge(const Arguments& args, const Streams& io) {
  const auto parsed = parse(merge_usage(), args, io);
  if (!parsed) return kDone;
  const auto& names = parsed->positional();
  const sweep::MergeReport report = sweep::merge_stores(names[0], {names.begin() + 1, names.end()}, parsed->has("force"));
  for (const std::string& example : report.examples) io.err << "kvatlas merge: " << example << "\n";
  if (parsed->json()) {
    print(io, Json(sweep::to_json(report)));
  } else {
    io.out << spell_count(static_cast<double>(report.rows)) << " rows, " << spell_count(static_cast<double>(report.conflicts)) << " conflicts; "
           << (report.written ? cat("written to ", names[0]) : cat(names[0], " left as it was")) << "\n";
  }
  return report.written ? kDone : kFailed;
}

}  // namespace kvatlas::cli

// import: result files of other tools become rows with provenance `imported`; what matches none of our names is listed.
#include <optional>
#include <ostream>

#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "sweeps/imports.hpp"

namespace kvatlas::cli {

namespace {

const Usage& import_usage() {
  static const std::string note = [] {
    std::string kinds;
    for (const std::string_view kind : sweep::import_kinds()) kinds += cat(kinds.empty() ? "" : ", ", kind);
    return cat("KIND is one of ", kinds, ".\n--model, --gpu and --method state what the file does not; names that are none of ours are listed, never\n"
               "guessed. The same file imported again replaces its rows.");
  }();
  static const Usage u{.command = "import", .positional = "KIND FILE", .least = 2, .most = 2,
                       .example = "kvatlas import llama-bench bench.json --db atlas.sqlite --model llama-3.1-8b",
                       .options = {Option::text("db", "FILE", "store that takes the rows; without it they are shown only"), Option::text("model", "M", "the model of every row"),
                                   Option::text("gpu", "G", "the GPU of every row"), Option::text("method", "M", "the method of every row")},
                       .note = note.c_str()};
  return u;
}

std::optional<std::string> stated(const Parsed& p, const char* name) { return p.has(name) ? std::optional(p.text(name)) : std::nullopt; }

}  // namespace

int run_import(const Arguments& args, const Streams& io) {
  const auto parsed = parse(import_usage(), args, io);
  if (!parsed) return kDone;
  const Parsed& p = *parsed;
  const sweep::ImportReport report = sweep::read_results(p.positional()[0], p.positional()[1], {.model = stated(p, "model"), .gpu = stated(p, "gpu"), .method = stated(p, "method")});
  if (p.has("db")) sweep::store_results(p.text("db"), report);
  if (p.json()) {
    print(io, Json(sweep::to_json(report)));
    return kDone;
  }
  Table table({{"model"}, {"gpu"}, {"method"}, {"metric"}, {"value", Align::right}});
  constexpr std::size_t kShown = 20;
  for (std::size_t i = 0; i < report.rows.size() && i < kShown; ++i) {
    const sweep::ImportedRow& r = report.rows[i];
    table.add({r.model.value_or("-"), r.gpu.value_or("-"), r.recipe.value_or("-"), r.metric, spell_number(r.value)});
  }
  table.print(io.out);
  io.out << "\n" << report.rows.size() << " rows" << (report.rows.size() > kShown ? cat(" (", kShown, " shown)") : std::string())
         << (p.has("db") ? cat(", stored in ", p.text("db")) : std::string(", not stored (--db FILE stores them)")) << "\n";
  for (const sweep::Unmatched& u : report.unmatched)
    io.out << "unmatched " << u.field << (u.name.empty() ? std::string() : cat(" \"", u.name, "\"")) << ", " << u.rows << " rows: " << u.why << "\n";
  return kDone;
}

}  // namespace kvatlas::cli

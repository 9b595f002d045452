// sweep: evaluates a spec's design points into a store; can be interrupted, resumed and sharded.
#include <fmt/core.h>
#include <ostream>

#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "sweeps/interrupt.hpp"
#include "sweeps/json.hpp"
#include "sweeps/runner.hpp"
#include "sweeps/summary.hpp"

namespace kvatlas::cli {

namespace {

const Usage& sweep_usage() {
  static const Usage u{.command = "sweep", .positional = "SPEC", .least = 1, .most = 1,
                       .example = "kvatlas sweep sweeps/examples/demo.json --db atlas.sqlite",
                       .options = {Option::text("db", "FILE", "store; what it holds already is not evaluated again (required without --no-store)"),
                                   Option::integer("jobs", 0, 4096, "worker threads (0: one a core)", "0"),
                                   Option::text("shard", "I/N", "only the I-th of N parts of the work", "1/1"),
                                   Option::flag("no-store", "evaluate only, store nothing (a --db is not touched)"),
                                   Option::flag("quiet", "no progress, no summary")},
                       .note = "SPEC is a JSON document: models, gpus, methods with lists and ranges, contexts, batches, workloads, engines.\n"
                               "Ctrl-C ends after the current configurations; the same command goes on from there."};
  return u;
}

/// One line for all settings that the methods' ranges refuse, one for all plans that do not exist: --json has a sentence for each.
void print_left_out(std::ostream& err, const sweep::SweepReport& r) {
  std::string methods, last;
  for (const std::string& sentence : r.left_out) {
    const std::string method = sentence.substr(0, sentence.find(':'));
    if (method != last) methods += cat(methods.empty() ? "" : ", ", method);
    last = method;
  }
  if (!r.left_out.empty()) err << "kvatlas sweep: " << r.left_out.size() << " settings left out (a value outside the method's range): " << methods << "\n";
  if (!r.without_plan.empty()) err << "kvatlas sweep: " << r.without_plan.size() << " recipes have no released plan: their ideal plan is the only one\n";
}

std::string spell_best(const std::optional<sweep::BestPoint>& p, bool with_recipe) {
  if (!p) return with_recipe ? "-" : "does not fit";
  return cat(spell_count(p->tokens_per_s), with_recipe ? cat(" ", p->recipe) : "");
}

void print_report(std::ostream& out, const sweep::SweepReport& r, const sweep::Spec& spec, bool no_store) {
  const char* what = spec.workloads.empty() ? "points" : spec.contexts.empty() ? "workloads" : "points and workloads";
  out << spell_count(static_cast<double>(r.points)) << " " << what << ": ";
  if (no_store) out << "evaluated, none stored; ";
  else out << spell_count(static_cast<double>(r.stored)) << " stored, " << spell_count(static_cast<double>(r.skipped)) << " were there already; ";
  out << spell_count(static_cast<double>(r.infeasible)) << " infeasible; " << fmt::format("{:.2f}", r.seconds) << " s";
  if (r.stored > 0) out << ", " << spell_count(r.points_per_s) << " stored/s";
  if (no_store) out << ", " << spell_count(r.points_per_s) << " evaluated/s";
  out << "\n";
}

void print_summary(std::ostream& out, const sweep::StoreSummary& s, const std::string& db) {
  out << db << ": " << spell_count(static_cast<double>(s.points)) << " points and " << spell_count(static_cast<double>(s.workloads))
      << " workloads, " << spell_count(static_cast<double>(s.designs))
      << " distinct (model, GPU, method, parameters, context), " << spell_bytes(static_cast<double>(s.file_bytes));
  if (s.points > 0) out << fmt::format(" ({:.0f} bytes a point)", static_cast<double>(s.file_bytes) / static_cast<double>(s.points));
  out << "\ntokens/s of decoding at " << spell_count(static_cast<double>(s.context))
      << " tokens of context, largest batches that fit; prefill excluded, quality not judged\n";
  std::string gpu;
  Table table({{"model"}, {"plain", Align::right}, {"best in an engine"}, {"best of all"}});
  for (const sweep::PairSummary& p : s.pairs) {
    std::int64_t points = 0;
    for (const sweep::PairSummary& other : s.pairs) points += other.gpu == p.gpu ? other.points : 0;
    if (p.gpu != gpu) table.heading(cat(p.gpu, ": ", spell_count(static_cast<double>(points)), " points"));
    table.add({cat("  ", p.model), spell_best(p.plain, false), spell_best(p.deployable, true), spell_best(p.best, true)});
    gpu = p.gpu;
  }
  table.print(out, 2);
}

}  // namespace

int run_sweep(const Arguments& args, const Streams& io) {
  const auto parsed = parse(sweep_usage(), args, io);
  if (!parsed) return kDone;
  const Parsed& p = *parsed;
  const bool no_store = p.has("no-store");
  if (!no_store && !p.has("db")) throw UsageError("--db FILE is required without --no-store");
  const sweep::Spec spec = sweep::load_spec(p.positional()[0]);
  const bool quiet = p.has("quiet");
  const sweep::InterruptGuard guard;
  sweep::SweepOptions options{.jobs = static_cast<int>(p.integer("jobs")), .shard = sweep::parse_shard(p.text("shard")), .stop = guard.flag(), .progress = {}};
  if (io.progress && !quiet)
    options.progress = [&io](const sweep::Progress& progress) { io.err << "\r" << sweep::progress_line(progress) << "   " << std::flush; };
  const std::string db = no_store ? "" : p.text("db");
  const sweep::SweepReport report = no_store ? sweep::evaluate_sweep(spec, options).report : sweep::run_sweep(spec, db, options);
  if (options.progress) io.err << "\n";
  if (!quiet) print_left_out(io.err, report);
  if (p.json()) {
    print(io, Json(sweep::to_json(report, no_store ? std::nullopt : std::optional(db))));
  } else {
    print_report(io.out, report, spec, no_store);
    if (!no_store && !quiet) print_summary(io.out, sweep::summarize(db), db);
  }
  if (report.interrupted) {
    io.err << "kvatlas sweep: interrupted; the same command goes on from here\n";
    return kFailed;
  }
  return kDone;
}

}  // namespace kvatlas::cli

// calibrate: fit the predictor's constants to measured kernel timings, on this machine's or published ones.
#include <ostream>

#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "core/io/file.hpp"
#include "simulator/validate.hpp"

namespace kvatlas::cli {

namespace {

const Usage& calibrate_usage() {
  static const Usage u{.command = "calibrate", .positional = "FILES...", .least = 0, .most = 64,
                       .example = "kvatlas calibrate --measurements measurements/ --out calibration.json",
                       .options = {Option::list("measurements", "PATH", "a CSV file, or a folder with decode_attention.csv, prefill_attention.csv, gemm.csv, comm.csv, mla_decode.csv"),
                                   Option::text("out", "FILE", "write the constants here"),
                                   Option::text("start", "FILE", "constants and kernel names to start from; without it the shipped ones"),
                                   Option::choice("cross-validate", {"shapes", "lengths", "gpu"}, "also fit with whole shapes, lengths or one GPU left out, and report the errors of the rows left out"),
                                   Option::flag("intervals", "fit the 80% intervals, too: three cross-validations")},
                       .note = "Robust least squares within physical bounds. GPUs and kernels that the start does not know are added. What no row reaches stays."};
  return u;
}

}  // namespace

int run_calibrate(const Arguments& args, const Streams& io) {
  const auto parsed = parse(calibrate_usage(), args, io);
  if (!parsed) return kDone;
  std::vector<std::string> paths = parsed->positional(), skipped;
  for (const std::string& p : parsed->list("measurements")) paths.push_back(p);
  if (paths.empty()) throw UsageError("--measurements PATH is required: the shipped constants were fitted to more than the shipped sample");
  sim::Calibration start = sim::shipped_calibration();
  if (parsed->has("start")) start = sim::load_calibration(parsed->text("start"));
  const std::vector<sim::Measurement> rows = sim::load_measurements(paths, skipped);
  for (const std::string& file : skipped) io.err << "not used: " << file << "\n";
  sim::Calibration fitted = sim::fit(start, rows);
  if (parsed->has("intervals")) fitted.intervals = sim::intervals_of(fitted, rows);
  if (parsed->has("out")) io::write_text(parsed->text("out"), sim::to_text(fitted));
  Json folds = Json::array();
  std::string table;
  if (parsed->has("cross-validate")) {
    const std::string& word = parsed->text("cross-validate");
    const auto leave_out = word == "shapes" ? sim::LeaveOut::shapes : word == "lengths" ? sim::LeaveOut::lengths : sim::LeaveOut::gpu;
    const sim::CrossValidation cv = sim::cross_validate(fitted, rows, leave_out);
    for (const sim::Fold& f : cv.folds)
      folds.push_back({{"left_out", f.left_out}, {"rows", f.errors.rows}, {"median_ape", f.errors.median}, {"mean_ape", f.errors.mean}, {"p90_ape", f.errors.p90}});
    table = cat("left-out rows, ", word, ":\n", sim::to_text(sim::validate(fitted, rows, false, &cv.predicted)));
  }
  if (parsed->json()) {
    print(io, Json{{"parameters", fitted.coefficients()}, {"rows", rows.size()}, {"folds", folds}, {"measurements", "published or measured: as the files say"}, {"provenance", "computed"}});
    return kDone;
  }
  io.out << rows.size() << " rows, " << fitted.coefficients() << " constants\n" << sim::to_text(sim::validate(fitted, rows, false)) << table
         << "\nerrors are computed: predictions against timings that were measured by whoever wrote the files; rows that a fit has seen are no validation\n";
  return kDone;
}

}  // namespace kvatlas::cli

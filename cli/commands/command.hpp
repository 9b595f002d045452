// The commands of the kvatlas program: one row {name, summary, run} each, one file each.
#pragma once

#include <iosfwd>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::cli {

/// Where a command talks to: results on `out`, messages and progress on `err`.
struct Streams {
  std::ostream& out;
  std::ostream& err;
  bool progress = false;  // err is a terminal: a line may be rewritten
};

/// Exit codes of the program.
inline constexpr int kDone = 0;
inline constexpr int kFailed = 1;
inline constexpr int kWrongCommand = 2;

using Arguments = std::vector<std::string>;

struct Command {
  const char* name;
  const char* summary;
  int (*run)(const Arguments& args, const Streams& io);  // null: joins in a later version
};

/// Every command of the contract, in the order of the help text.
std::span<const Command> all_commands();

/// The whole program behind main(): finds the command, runs it, prints an error as one line, returns the exit code.
int run(const Arguments& args, const Streams& io);

int run_methods(const Arguments& args, const Streams& io);
int run_show(const Arguments& args, const Streams& io);
int run_models(const Arguments& args, const Streams& io);
int run_gpus(const Arguments& args, const Streams& io);
int run_simulate(const Arguments& args, const Streams& io);
int run_sweep(const Arguments& args, const Streams& io);
int run_merge(const Arguments& args, const Streams& io);
int run_diff(const Arguments& args, const Streams& io);
int run_validate(const Arguments& args, const Streams& io);
int run_calibrate(const Arguments& args, const Streams& io);
int run_pareto(const Arguments& args, const Streams& io);
int run_recommend(const Arguments& args, const Streams& io);
int run_compress(const Arguments& args, const Streams& io);
int run_claims(const Arguments& args, const Streams& io);
int run_serve_sim(const Arguments& args, const Streams& io);
int run_verify(const Arguments& args, const Streams& io);
int run_bench(const Arguments& args, const Streams& io);
int run_breakeven(const Arguments& args, const Streams& io);
int run_capture(const Arguments& args, const Streams& io);
int run_evaluate(const Arguments& args, const Streams& io);
int run_report(const Arguments& args, const Streams& io);
int run_vectors(const Arguments& args, const Streams& io);
int run_import(const Arguments& args, const Streams& io);

}  // namespace kvatlas::cli

// The table of commands and the one place where errors become a line and an exit code.
#include "cli/commands/command.hpp"

#include <algorithm>
#include <exception>
#include <fmt/core.h>
#include <ostream>

#include "cli/commands/support/options.hpp"
#include "core/errors.hpp"

#ifndef KVATLAS_VERSION
#error "the build defines KVATLAS_VERSION"
#endif

namespace kvatlas::cli {

namespace {

constexpr Command kCommands[] = {
    {"recommend", "what to run for a model, a GPU and a workload, and why", run_recommend},
    {"simulate", "predict one deployment: a workload, or one decode step", run_simulate},
    {"serve-sim", "simulate a serving engine event by event", run_serve_sim},
    {"breakeven", "where a method starts to pay", run_breakeven},
    {"methods", "list the compression methods", run_methods},
    {"show", "one method: paper, parameters, byte ledger, plan", run_show},
    {"models", "list the models", run_models},
    {"gpus", "list the GPUs with a source for every figure", run_gpus},
    {"compress", "compress given keys and values; exact bytes and errors", run_compress},
    {"sweep", "evaluate a spec's design points into a store", run_sweep},
    {"merge", "merge stores", run_merge},
    {"diff", "compare two stores", run_diff},
    {"pareto", "points of a store that no other point beats", run_pareto},
    {"claims", "published figures of the methods beside ours", run_claims},
    {"capture", "record queries, keys and values of a model", run_capture},
    {"evaluate", "measure quality through the compressed cache", run_evaluate},
    {"verify", "check kernels against the reference", run_verify},
    {"bench", "time kernels on a GPU", run_bench},
    {"validate", "compare predictions with measurements", run_validate},
    {"calibrate", "fit the simulator to measurements", run_calibrate},
    {"vectors", "write test vectors of a method, or check a folder of them", run_vectors},
    {"import", "turn result files of other tools into rows, matched to our names", run_import},
    {"report", "draw a store as one HTML file", run_report},
};

void print_help(std::ostream& out) {
  out << "kvatlas: which KV-cache compression, at which setting, for your model, GPU and workload\n\n"
         "usage: kvatlas COMMAND [options]      kvatlas COMMAND --help\n\n";
  for (const Command& c : kCommands)
    if (c.run != nullptr) out << fmt::format("  {:<11} {}\n", c.name, c.summary);
  std::string later;
  for (const Command& c : kCommands)
    if (c.run == nullptr) later += cat(later.empty() ? "" : ", ", c.name);
  if (!later.empty()) out << "\nnot part of this version yet:\n  " << later << "\n";
  out << "\nEvery command takes --json and --help. Exit codes: 0 done, 1 the run failed, 2 the command is wrong.\n"
         "example: kvatlas recommend --model llama-3.1-8b --gpu rtx-4090 --prompt 32K --output 512 --slo tpot_ms=50\n";
}

int report(const Streams& io, std::string_view command, const char* sentence, int code) {
  std::string line = cat("kvatlas", command.empty() ? "" : " ", command, ": ", sentence);
  std::replace(line.begin(), line.end(), '\n', ' ');
  io.err << line << "\n";
  return code;
}

}  // namespace

std::span<const Command> all_commands() { return kCommands; }

int run(const Arguments& args, const Streams& io) {
  if (args.empty() || args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    print_help(args.empty() ? io.err : io.out);
    return args.empty() ? kWrongCommand : kDone;
  }
  if (args[0] == "--version") {
    io.out << "kvatlas " KVATLAS_VERSION "\n";
    return kDone;
  }
  const std::string& name = args[0];
  const auto command = std::find_if(std::begin(kCommands), std::end(kCommands), [&](const Command& c) { return name == c.name; });
  if (command == std::end(kCommands)) {
    std::vector<std::string_view> names;
    for (const Command& c : kCommands) names.emplace_back(c.name);
    return report(io, "", unknown_name("command", name, names).c_str(), kWrongCommand);
  }
  const Arguments rest(args.begin() + 1, args.end());
  try {
    if (command->run == nullptr) {
      const std::string sentence = cat(name, " (", command->summary, ") is not part of this version yet");
      if (std::find(rest.begin(), rest.end(), "--help") != rest.end()) {
        io.out << sentence << "\n";
        return kDone;
      }
      return report(io, "", sentence.c_str(), kFailed);
    }
    return command->run(rest, io);
  } catch (const UsageError& e) {
    return report(io, name, e.what(), kWrongCommand);
  } catch (const InvalidArgument& e) {
    return report(io, name, e.what(), kWrongCommand);
  } catch (const std::bad_alloc&) {
    return report(io, name, "out of memory", kFailed);
  } catch (const std::exception& e) {
    return report(io, name, e.what(), kFailed);
  }
}

}  // namespace kvatlas::cli

// report: hands a store to the Python package's report, which draws it as one HTML file.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <ostream>

#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/source_tree.hpp"

extern char** environ;

namespace kvatlas::cli {

namespace {

namespace fs = std::filesystem;

const Usage& report_usage() {
  static const Usage u{.command = "report", .positional = "", .example = "kvatlas report --db atlas.sqlite -o report.html",
                       .options = {Option::text("db", "FILE", "store to draw").needed(), Option::text("out", "FILE", "page to write; also -o", "report.html"),
                                   Option::text("figures", "FOLDER", "also write the figures as SVG and PNG (needs matplotlib)"),
                                   Option::text("title", "TEXT", "title of the page (default: the store's name)"),
                                   Option::integer("points", 1000, 1000000, "most decode steps that the page carries", "100000")},
                       .note = "The page needs no server and no network. Beyond --points, contexts and batches are thinned, and the page says so.\n"
                               "The Python package kvatlas does the work; KVATLAS_PYTHON names another interpreter than python3."};
  return u;
}

/// The report of the source tree that this program was built in; empty when it was installed.
fs::path report_of_source_tree() {
  const fs::path folder = source_tree();
  return folder.empty() ? fs::path() : folder / "python" / "kvatlas" / "report" / "__main__.py";
}

/// Runs a program found by PATH and returns its exit code; 127 when it cannot be started.
int run_program(const std::vector<std::string>& words, bool silent) {
  std::vector<char*> argv;
  for (const std::string& w : words) argv.push_back(const_cast<char*>(w.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (silent)
    for (const int stream : {STDOUT_FILENO, STDERR_FILENO}) posix_spawn_file_actions_addopen(&actions, stream, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  const int failed = ::posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  int status = 0;
  if (failed != 0 || ::waitpid(child, &status, 0) != child) return 127;
  return WIFEXITED(status) ? WEXITSTATUS(status) : kFailed;
}

}  // namespace

int run_report(const Arguments& args, const Streams& io) {
  // "-o" is --out where an option may stand; behind an option that takes a value it is that value.
  Arguments spelled = args;
  for (std::size_t i = 0; i < spelled.size(); ++i) {
    if (spelled[i] == "-o") spelled[i] = "--out";
    for (const Option& option : report_usage().options)
      if (spelled[i] == cat("--", option.name)) {
        ++i;
        break;
      }
  }
  const auto parsed = parse(report_usage(), spelled, io);
  if (!parsed) return kDone;
  const char* chosen = std::getenv("KVATLAS_PYTHON");
  const std::string python = chosen != nullptr && chosen[0] != '\0' ? chosen : "python3";
  if (run_program({python, "-c", "import sys; sys.exit(sys.version_info < (3, 9))"}, true) != 0)
    throw IoError(cat("the report needs Python 3.9 or newer: ", python, " is missing or older; KVATLAS_PYTHON names another interpreter"));
  std::vector<std::string> words{python};
  if (const fs::path main = report_of_source_tree(); !main.empty()) {
    words.push_back(main.string());
  } else {
    if (run_program({python, "-c", "import kvatlas.report"}, true) != 0)
      throw IoError(cat("the report needs the Python package kvatlas, which ", python, " does not have: pip install kvatlas"));
    words.insert(words.end(), {"-m", "kvatlas.report"});
  }
  for (const char* name : {"db", "out", "figures", "title", "points"})
    if (parsed->has(name)) words.push_back(cat("--", name, "=", name == std::string_view("points") ? cat(parsed->integer("points")) : parsed->text(name)));
  if (parsed->json()) words.emplace_back("--json");
  io.out.flush();
  return run_program(words, false);
}

}  // namespace kvatlas::cli

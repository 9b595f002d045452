#include "cli/commands/support/options.hpp"

#include <algorithm>

#include "tests/catch.hpp"
#include "tests/support/program.hpp"
#include "tests/support/temp_folder.hpp"

using namespace kvatlas;
using testing::kvatlas_run;

namespace {

/// The one sentence of a wrong command.
std::string says(const cli::Arguments& args) {
  const auto run = kvatlas_run(args);
  CAPTURE(run.err);
  REQUIRE(run.code == 2);
  REQUIRE(run.out.empty());
  REQUIRE(std::count(run.err.begin(), run.err.end(), '\n') == 1);
  return run.err;
}

}  // namespace

TEST_CASE("a whole number is written in digits alone: points, exponents and suffixes are refused", "[unit]") {
  for (const char* text : {"1e3", "4.0", "1.5", "1e1", "0x10", "4K", "+4", " 4", "4 ", "1e", ".", "-", "99999999999999999999"}) {
    CAPTURE(text);
    REQUIRE(says({"show", "full", "--batch", text}) == cat("kvatlas show: --batch is \"", text, "\", must be a whole number from 1 to 1048576\n"));
  }
  const cli::Arguments base{"simulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--context", "4K"};
  cli::Arguments ranks = base;
  ranks.insert(ranks.end(), {"--tp", "1e1"});
  REQUIRE(says(ranks) == "kvatlas simulate: --tp is \"1e1\", must be a whole number from 1 to 1024\n");
  REQUIRE(says({"sweep", "none.json", "--db", "none.sqlite", "--jobs", "2.0"}) == "kvatlas sweep: --jobs is \"2.0\", must be a whole number from 0 to 4096\n");
  REQUIRE(says({"compress", "none", "--method", "full", "--out", "none.out", "--seed", "1e3"}) ==
          "kvatlas compress: --seed is \"1e3\", must be a whole number from 0 to 2147483647\n");
  REQUIRE(kvatlas_run({"show", "full", "--batch", "1048576"}).code == 0);
}

TEST_CASE("options that contradict each other are refused, defaults are no contradiction", "[unit]") {
  const cli::Arguments base{"simulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm"};
  const auto with = [&](const cli::Arguments& more) {
    cli::Arguments args = base;
    args.insert(args.end(), more.begin(), more.end());
    return args;
  };
  REQUIRE(kvatlas_run(with({"--context", "4K"})).code == 0);
  const cli::Arguments workload_only[] = {{"--prefix-hit", "0"}, {"--turns", "1"}, {"--rate", "1"}, {"--concurrency", "2"},
                                          {"--slo", "tpot_ms=50"}, {"--cache-state", "cold"}, {"--disaggregated"}};
  for (const cli::Arguments& option : workload_only) {
    cli::Arguments args = with({"--context", "4K"});
    args.insert(args.end(), option.begin(), option.end());
    REQUIRE(says(args) == cat("kvatlas simulate: ", option[0], " is part of a workload (--prompt, --output), not of one decode step (--context)\n"));
  }
  REQUIRE(says(with({"--prompt", "4K", "--output", "16", "--batch", "1"})) ==
          "kvatlas simulate: --batch is part of one decode step (--context), not of a workload (--prompt, --output), which has --concurrency\n");
  for (const char* slo : {"tpot_ms=50,tpot_ms=60", "tpot_ms=50,tpot_p99_ms=60", "ttft_ms=5,tpot_ms=50,ttft_ms=5"})
    REQUIRE(says(with({"--prompt", "4K", "--output", "16", "--slo", slo})) ==
            cat("kvatlas simulate: --slo is \"", slo, "\", must give each of TTFT and TPOT at most once\n"));
  for (const char* gpu : {"h100-sxm:l2=50MiB,l2=60MiB", "h100-sxm:l2=50MiB,clock=1GHz,l2_bytes=50MiB"})
    REQUIRE(says({"simulate", "--model", "llama-3.1-8b", "--context", "4K", "--gpu", gpu}) ==
            cat("kvatlas simulate: GPU is \"", gpu, "\", which changes l2 twice, must change a figure at most once\n"));
}

TEST_CASE("help says what this version lacks and which engine profile is the default", "[unit]") {
  const std::string help = kvatlas_run({"simulate", "--help"}).out;
  std::string flat;  // one line, single spaces: help is wrapped
  for (const char c : help)
    if (c != '\n' && (c != ' ' || (!flat.empty() && flat.back() != ' '))) flat += c;
    else if (c == '\n' && !flat.empty() && flat.back() != ' ') flat += ' ';
  for (const char* text : {"integer (not part of this version yet)", "warm holds the common prefix (serve-sim)",
                           "GPUs of their own (serve-sim)", "(default vllm)"}) {
    CAPTURE(text);
    REQUIRE(flat.find(text) != std::string::npos);
  }
  REQUIRE(flat.find("neutral") == std::string::npos);
}

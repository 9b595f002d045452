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

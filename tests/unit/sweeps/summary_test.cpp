#include "sweeps/summary.hpp"

#include "core/errors.hpp"
#include "sweeps/runner.hpp"
#include "tests/catch.hpp"
#include "tests/support/temp_folder.hpp"

using namespace kvatlas;

TEST_CASE("a summary counts every point and compares the plain cache with the best at 32K", "[unit]") {
  const testing::TempFolder folder;
  const auto spec = sweep::parse_spec(R"({"models":["llama-2-7b"],"gpus":["h100-sxm","rtx-4090"],"methods":["full","streaming_llm"],"contexts":["4K","32K","64K"],"batches":[1,4]})", "spec");
  const auto report = sweep::run_sweep(spec, folder.file("s.sqlite"));
  const auto s = sweep::summarize(folder.file("s.sqlite"));
  REQUIRE(s.context == 32768);
  REQUIRE(s.points == report.points);
  REQUIRE(s.pairs.size() == 2);
  REQUIRE(s.pairs[0].gpu == "h100-sxm");
  REQUIRE(s.pairs[0].points + s.pairs[1].points == s.points);
  REQUIRE(s.pairs[0].plain->recipe == "full");
  REQUIRE(s.pairs[0].best->recipe == "streaming_llm");
  REQUIRE(s.pairs[0].best->tokens_per_s > s.pairs[0].plain->tokens_per_s);
  REQUIRE(s.pairs[0].deployable->tokens_per_s == s.pairs[0].best->tokens_per_s);
  REQUIRE(!s.pairs[1].plain);  // 16 GiB of cache beside 12.6 GiB of weights do not fit a board of 24 GiB
  REQUIRE_THROWS_AS(sweep::summarize(folder.file("none.sqlite")), IoError);
}

#include "gpu/simt/report.hpp"

#include <nlohmann/json.hpp>

#include "tests/unit/gpu/simt/run.hpp"

using namespace kvatlas::gpu;

TEST_CASE("a report prints as a table and as JSON with the same figures", "[unit]") {
  DeviceMemory memory;
  const auto x = memory.upload("x", std::vector<int>(64, 1));
  const LaunchReport r = run({.threads = 64, .shared_bytes = 256, .l2_bytes = 4096}, [&](SimCtx& c) {
    auto s = c.shared<int>(64);
    c.st_shared(s, c.thread(), c.ld(x, c.thread()));
    c.ld_shared(s, c.thread() ^ 32);
  });
  const auto j = nlohmann::json::parse(json_of(r));
  REQUIRE(j["completed"] == true);
  REQUIRE(j["reads"]["sectors"] == 8);
  REQUIRE(j["reads"]["efficiency"] == 1.0);
  REQUIRE(j["shared"]["conflicts"] == 0);
  REQUIRE(j["sites"].size() == 3);
  REQUIRE(j["l2"]["read_misses"] == 8);
  REQUIRE(j["findings"].back()["kind"] == "race");
  const std::string table = table_of(r);
  REQUIRE_THAT(table, contains_text("global_load"));
  REQUIRE_THAT(table, contains_text("race: block (0, 0, 0), thread"));
  REQUIRE_THAT(table, contains_text("L2 of 4096 bytes: 0 sectors hit, 8 fetched, 0 written back"));
}

TEST_CASE("the limits of every architecture are found by name", "[unit]") {
  for (const GpuLimits& l : all_gpu_limits()) {
    REQUIRE(&gpu_limits(l.name) == &l);
    REQUIRE(l.shared_opt_in + 1024 == l.shared_of_sm);
  }
  REQUIRE_THROWS_AS(gpu_limits("sm_91"), kvatlas::InvalidArgument);
}

TEST_CASE("downloads refuse bytes that nobody wrote", "[unit]") {
  DeviceMemory memory;
  const auto x = memory.allocate<int>("x", 2);
  REQUIRE_THROWS_WITH(memory.download(x, 2), "byte 0 of x was never written");
  REQUIRE_THROWS_WITH(memory.download(x, 3), "download of bytes 0 to 12 of x, which has 8");
}

#include <nlohmann/json.hpp>

#include "tests/catch.hpp"
#include "tests/support/program.hpp"

using kvatlas::testing::kvatlas_run;
using nlohmann::json;

TEST_CASE("verify prints a row a case with the keys of the contract", "[unit]") {
  const auto run = kvatlas_run({"verify", "--kernel", "decode_attention", "--format", "int2/32t+", "--json"});
  REQUIRE(run.err.empty());
  REQUIRE(run.code == 0);
  const json rows = json::parse(run.out);
  REQUIRE(rows.size() == 1);
  const json& row = rows[0];
  for (const char* key : {"kernel", "format", "shape", "arithmetic", "bit_exact", "schedules", "races", "relation", "counted_bytes", "planned_bytes", "sum_sectors", "distinct_sectors",
                          "floor_bytes", "partials_bytes", "bank_conflicts", "registers", "spills", "gpu_limits"}) {
    CAPTURE(key);
    REQUIRE(row.contains(key));
  }
  REQUIRE(row["bit_exact"] == true);
  REQUIRE(row["races"] == 0);
  REQUIRE(row["counted_bytes"] == row["planned_bytes"]);
  REQUIRE(row["counted_bytes"] == 32 * row["sum_sectors"].get<long>());
  REQUIRE(row["provenance"] == "counted");  // sectors, bytes, conflicts
  REQUIRE(row["planned_provenance"] == "computed");
  REQUIRE(row["floor_provenance"] == "computed");
  REQUIRE(row["registers"].get<int>() > 0);
  REQUIRE(row["spills"] == 0);
  REQUIRE(row["registers_by_architecture"].size() == 6);
  REQUIRE(row["registers_provenance"] == "imported");  // from nvcc's own report
  REQUIRE(row["distinct_sectors"].get<long>() * 32 >= row["floor_bytes"].get<long>());
}

TEST_CASE("verify and bench say in one sentence that kernels run on the CPU executor only, and refuse what they do not know", "[unit]") {
  const auto says = [](std::vector<std::string> args) {
    const auto run = kvatlas_run(std::move(args));
    REQUIRE(run.code != 0);
    return run.err;
  };
  REQUIRE(says({"verify", "--device", "cuda"}) == "kvatlas verify: this build runs kernels on the CPU executor only (--device simt)\n");
  REQUIRE(says({"bench"}) == "kvatlas bench: this build runs kernels on the CPU executor only, which measures no time\n");
  REQUIRE(says({"verify", "--kernel", "decode"}) == "kvatlas verify: \"decode\": unknown kernel; did you mean \"decode_attention\"?\n");
}

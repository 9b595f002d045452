// serve-sim and breakeven as a user calls them.
#include <nlohmann/json.hpp>
#include <span>

#include "core/io/file.hpp"
#include "tests/catch.hpp"
#include "tests/support/program.hpp"
#include "tests/support/temp_folder.hpp"

using namespace kvatlas;
using nlohmann::json;
using testing::kvatlas_run;

namespace {

const cli::Arguments kServe{"serve-sim", "--model", "llama-3.1-8b", "--gpu", "h100-sxm"};

cli::Arguments with(cli::Arguments args, std::initializer_list<const char*> more) {
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

std::string says(const cli::Arguments& args) {
  const auto run = kvatlas_run(args);
  REQUIRE(run.code == 2);
  REQUIRE(run.out.empty());
  return run.err;
}

void write(const std::string& path, const std::string& text) { io::write_file(path, std::as_bytes(std::span(text))); }

}  // namespace

TEST_CASE("serve-sim --json has the keys of its contract", "[unit]") {
  const auto run = kvatlas_run(with(kServe, {"--prompt", "1K", "--output", "64", "--rate", "4", "--requests", "50", "--slo", "ttft_ms=500,tpot_ms=30", "--json"}));
  REQUIRE(run.code == 0);
  const json j = run.json();
  for (const char* key : {"requests", "completed", "ttft_ms", "tpot_ms", "e2e_ms", "throughput_tok_s", "goodput_req_s", "preemptions", "prefix_hit_rate", "gpu_hours", "queue_ms", "provenance"}) {
    CAPTURE(key);
    REQUIRE(j.contains(key));
  }
  for (const char* key : {"ttft_ms", "tpot_ms", "e2e_ms"})
    for (const char* p : {"p50", "p90", "p99"}) REQUIRE(j[key][p].get<double>() > 0);
  REQUIRE(j["requests"] == 50);
  REQUIRE(j["completed"] == 50);
  REQUIRE(j["goodput_req_s"].get<double>() <= j["requests_per_s"].get<double>());
}

TEST_CASE("serve-sim replays traces of both formats and writes a timeline", "[unit]") {
  const testing::TempFolder folder;
  write(folder.file("azure.csv"), "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.99,396,109\n");
  write(folder.file("mooncake.jsonl"), "{\"timestamp\": 0, \"input_length\": 1024, \"output_length\": 5, \"hash_ids\": [1, 2]}\n"
                                       "{\"timestamp\": 9000, \"input_length\": 1200, \"output_length\": 5, \"hash_ids\": [1, 2, 3]}\n");
  const auto azure = kvatlas_run(with(kServe, {"--trace", folder.file("azure.csv").c_str(), "--timeline", folder.file("t.json").c_str(), "--json"}));
  REQUIRE(azure.code == 0);
  REQUIRE(azure.json()["completed"] == 2);
  const auto bytes = io::read_file(folder.file("t.json"));
  REQUIRE(json::parse(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()))["traceEvents"].size() > 10);
  const auto mooncake = kvatlas_run(with(kServe, {"--trace", folder.file("mooncake.jsonl").c_str(), "--json"}));
  REQUIRE(mooncake.json()["prefix_hit_rate"].get<double>() == Approx(1024.0 / 2224));
  REQUIRE(kvatlas_run(with(kServe, {"--trace", folder.file("none.csv").c_str()})).code == 1);
}

TEST_CASE("serve-sim refuses what contradicts itself in one sentence", "[unit]") {
  REQUIRE(says(kServe) == "kvatlas serve-sim: --prompt N is required without --trace FILE\n");
  REQUIRE(says(with(kServe, {"--prompt", "1K", "--output", "64"})) == "kvatlas serve-sim: needs --rate R (Poisson arrivals) or --concurrency N (closed loop), or --trace FILE\n");
  REQUIRE(says(with(kServe, {"--prompt", "1K", "--output", "64", "--rate", "1", "--concurrency", "2"})) ==
          "kvatlas serve-sim: give one of --rate R (Poisson arrivals) or --concurrency N (closed loop)\n");
  REQUIRE(says(with(kServe, {"--trace", "x", "--rate", "1"})) == "kvatlas serve-sim: --rate contradicts --trace, which has its own arrivals and lengths\n");
  REQUIRE(says(with(kServe, {"--prompt", "1K", "--output", "64", "--rate", "1", "--decode-replicas", "2"})) == "kvatlas serve-sim: --decode-replicas needs --disaggregated\n");
  REQUIRE(says(with(kServe, {"--prompt", "1K", "--output", "64", "--rate", "1", "--speed", "2"})) == "kvatlas serve-sim: --speed belongs to --trace FILE\n");
}

TEST_CASE("requests that cannot fit are an answer with nulls and a sentence", "[unit]") {
  const auto run = kvatlas_run({"serve-sim", "--model", "llama-3.1-8b", "--gpu", "rtx-4090", "--prompt", "128K", "--output", "64", "--concurrency", "1", "--requests", "3", "--json"});
  REQUIRE(run.code == 0);
  const json j = run.json();
  REQUIRE(j["refused"] == 3);
  REQUIRE(j["ttft_ms"]["p50"].is_null());
  REQUIRE(j["throughput_tok_s"].is_null());
  REQUIRE(j["refused_why"].is_string());
}

TEST_CASE("breakeven --json has the keys of its contract, null where there is no border", "[unit]") {
  const cli::Arguments base{"breakeven", "--model", "llama-3.1-8b", "--gpu", "h100-sxm"};
  const json j = kvatlas_run(with(base, {"--method", "quest", "--json"})).json();
  for (const char* key : {"context", "batch", "bandwidth_gbs", "reason", "provenance"}) REQUIRE(j.contains(key));
  REQUIRE(j["context"].is_number());
  REQUIRE(kvatlas_run(with(base, {"--method", "h2o", "--against", "streaming_llm", "--json"})).json()["context"].is_null());
  REQUIRE(kvatlas_run(with(base, {"--method", "quest"})).out.find("ahead from") != std::string::npos);
  REQUIRE(says(with(base, {"--method", "full"})) == "kvatlas breakeven: --method and --against are both \"full\", must differ\n");
  REQUIRE(says(base) == "kvatlas breakeven: --method M is required\n");
}

#include "sweeps/caches.hpp"

#include "models/registry.hpp"
#include "sweeps/evidence.hpp"
#include "sweeps/merge.hpp"
#include "sweeps/runner.hpp"
#include "tests/catch.hpp"
#include "tests/unit/sweeps/sweep_support.hpp"

using namespace kvatlas;
using namespace kvatlas::sweep;
using namespace kvatlas::sweep::testing;

namespace {
std::vector<std::int64_t> floors(const std::string& contexts, const std::string& more = "") {
  std::vector<std::int64_t> out;
  for (const Tokens t : ledger_contexts(parse_spec(small_spec(contexts, "[1]", more), "s"))) out.push_back(t.value);
  return out;
}
std::vector<std::int64_t> whole(const std::string& contexts, const std::string& more = "") {
  std::vector<std::int64_t> out;
  for (const Tokens t : cache_contexts(parse_spec(small_spec(contexts, "[1]", more), "s"))) out.push_back(t.value);
  return out;
}
std::int64_t count(const std::filesystem::path& path, const std::string& sql) { return Database(path, Database::Mode::read).integer(sql); }
}  // namespace

TEST_CASE("ledgers are kept at powers of two and at what a workload reaches, each once", "[unit]") {
  REQUIRE(floors("[1000, 1024, 1500, 4096]") == std::vector<std::int64_t>{512, 1024, 4096});
  REQUIRE(floors("[1024]", ", \"workloads\": [{\"prompt\": \"4K\", \"output\": 64}]") == std::vector<std::int64_t>{1024, 4160});
}

TEST_CASE("sums of ledgers are kept at every context of the sweep too", "[unit]") {
  REQUIRE(whole("[1000, 1024, 1500, 4096]") == std::vector<std::int64_t>{512, 1000, 1024, 1500, 4096});
  REQUIRE(whole("[1024]", ", \"workloads\": [{\"prompt\": \"4K\", \"output\": 64}]") == std::vector<std::int64_t>{1024, 4160});
}

TEST_CASE("a cache is judged to forget at the context that is asked for, as recommend judges it", "[unit]") {
  // Sinks and window hold 2500 tokens: twice 2048 tokens still take 1.22 times the bytes of 2048, twice 4012 take those of 4012.
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  const std::string head = "{\"models\": [\"llama-3.2-1b\"], \"gpus\": [\"rtx-4090\"], \"methods\": [\"streaming_llm:recent_window=2496\"], \"batches\": [1], ";
  run_sweep(parse_spec(head + "\"contexts\": [2048, 4012]}", "s"), path);
  REQUIRE(count(path, "SELECT forgets FROM caches WHERE context = 4012") == 1);
  REQUIRE(count(path, "SELECT forgets FROM caches WHERE context = 2048") == 0);
  run_sweep(parse_spec(head + "\"contexts\": [1024], \"workloads\": [{\"prompt\": 3500, \"output\": 512}]}", "s"), folder / "b.sqlite");
  REQUIRE(count(folder / "b.sqlite", "SELECT forgets FROM caches WHERE context = 4012") == 1);
  REQUIRE(count(folder / "b.sqlite", "SELECT count(*) > 0 FROM ledgers WHERE context = 4012") == 1);
  REQUIRE(count(folder / "b.sqlite", "SELECT forgets FROM caches WHERE context = 1024") == 0);
  // A sweep of points keeps the sum alone there; the workload's sweep into the same file adds the ledger.
  REQUIRE(count(path, "SELECT count(*) FROM ledgers WHERE context = 4012") == 0);
  run_sweep(parse_spec(head + "\"contexts\": [1024], \"workloads\": [{\"prompt\": 3500, \"output\": 512}]}", "s"), path);
  REQUIRE(count(path, "SELECT sum(bytes) FROM ledgers WHERE context = 4012") == count(path, "SELECT bytes FROM caches WHERE context = 4012"));
  const CacheShape& shape = models::find_model("llama-3.2-1b").cache;
  const BoundRecipe window = Recipe::parse("streaming_llm:recent_window=2496").bind(shape);
  REQUIRE(forgets(window, Tokens(4012)));
  REQUIRE_FALSE(forgets(window, Tokens(2048)));
  REQUIRE_FALSE(forgets(Recipe::parse("full").bind(shape), Tokens(4012)));
  // This one fills up and is compressed by turns: at 33280 tokens it holds a little, at twice as many much.
  for (const char* recipe : {"freqkv", "freqkv:capacity=2048", "freqkv:capacity=8192", "freqkv:ratio=0.25"})
    for (const std::int64_t context : {33280, 65536}) REQUIRE(forgets(Recipe::parse(recipe).bind(shape), Tokens(context)));
  for (const char* recipe : {"commvq", "turboquant", "cachegen", "quest", "kivi:bits=2"}) REQUIRE_FALSE(forgets(Recipe::parse(recipe).bind(shape), Tokens(33280)));
  // Of layers whose own window is full a plain cache keeps no more either.
  const CacheShape& windows = models::find_model("gemma-3-270m").cache;
  for (const char* recipe : {"full", "fp8_kv"}) REQUIRE_FALSE(forgets(Recipe::parse(recipe).bind(windows), Tokens(4096)));
}

TEST_CASE("a sweep keeps what the cache of every recipe consists of", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  run_sweep(parse_spec(small_spec("\"1K..4Kx2\"", "[1]"), "s"), path);
  // Four recipes, one model, three contexts; parts add up to the whole.
  REQUIRE(count(path, "SELECT count(*) FROM caches") == 12);
  REQUIRE(count(path, "SELECT count(*) FROM caches c WHERE bytes != (SELECT sum(bytes) FROM ledgers l WHERE l.model = c.model AND l.method = c.method AND l.context = c.context)") == 0);
  const std::string full = "FROM caches c JOIN methods m ON m.id = c.method WHERE m.recipe = 'full' ";
  REQUIRE(count(path, "SELECT count(*) " + full + "AND bits_per_value = 16 AND forgets = 0 AND bytes = dense_bytes") == 3);
  // llama-3.2-1b: 16 layers, 8 heads of 64, keys and values in two bytes.
  REQUIRE(count(path, "SELECT bytes " + full + "AND context = 1024") == 1024 * 16 * 8 * 64 * 2 * 2);
  // Sweeping again adds nothing.
  run_sweep(parse_spec(small_spec("\"1K..4Kx2\"", "[1, 2]"), "s"), path);
  REQUIRE(count(path, "SELECT count(*) FROM caches") == 12);
}

TEST_CASE("a cache of fixed size is known to forget", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  run_sweep(parse_spec("{\"models\": [\"llama-3.2-1b\"], \"gpus\": [\"rtx-4090\"], \"methods\": [\"streaming_llm:recent_window=508\", \"kivi\"], \"contexts\": [\"32K\"], \"batches\": [1]}", "s"), path);
  REQUIRE(count(path, "SELECT forgets FROM caches c JOIN methods m ON m.id = c.method WHERE m.slug = 'streaming_llm'") == 1);
  REQUIRE(count(path, "SELECT forgets FROM caches c JOIN methods m ON m.id = c.method WHERE m.slug = 'kivi'") == 0);
}

TEST_CASE("merged stores keep ledgers and evidence, each row once", "[unit]") {
  const TempFolder folder;
  const Spec spec = parse_spec(small_spec("\"1K..4Kx2\"", "[1]"), "s");
  for (int i = 1; i <= 2; ++i) run_sweep(spec, folder / cat("part", i), {.shard = {i, 2}, .progress = {}});
  run_sweep(spec, folder / "whole");
  store_claims(folder / "part1", {{.method = "quest", .metric = "speedup", .unit = "x", .setup = "a", .verdict = "reproduced", .why = "b", .source = "c", .provenance = "computed", .change = "", .published = 2.0, .ours = 2.1, .ours_if = {}}});
  merge_stores(folder / "out", {folder / "part2", folder / "part1", folder / "part2"});
  for (const char* table : {"caches", "ledgers"}) REQUIRE(count(folder / "out", cat("SELECT count(*) FROM ", table)) == count(folder / "whole", cat("SELECT count(*) FROM ", table)));
  REQUIRE(count(folder / "out", "SELECT count(*) FROM claims WHERE unit = 'x' AND ours_if IS NULL") == 1);
}

TEST_CASE("claims of a store are replaced, not added", "[unit]") {
  const TempFolder folder;
  { Store store(folder / "a.sqlite"); }
  const ClaimRow row{.method = "quest", .metric = "speedup", .unit = "x", .setup = "a", .verdict = "undetermined", .why = "b", .source = "c", .provenance = "published", .change = "", .published = 7.0, .ours = {}, .ours_if = {}};
  store_claims(folder / "a.sqlite", {row, row});
  store_claims(folder / "a.sqlite", {row});
  REQUIRE(count(folder / "a.sqlite", "SELECT count(*) FROM claims") == 1);
  REQUIRE(sentence_of([&] { store_claims(folder / "none.sqlite", {row}); }) == (folder / "none.sqlite").string() + ": no such store");
  { Database(folder / "a.sqlite", Database::Mode::write).exec("UPDATE meta SET value = '0.0.1'"); }
  REQUIRE(sentence_of([&] { store_claims(folder / "a.sqlite", {row, row}); }).find((folder / "a.sqlite").string() + ": written by kvatlas 0.0.1, this is ") == 0);
  REQUIRE(count(folder / "a.sqlite", "SELECT count(*) FROM claims") == 1);
}

TEST_CASE("a validation with two rows of one place leaves the store as it was", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  { Store store(path); }
  std::vector<std::string> skipped;
  const std::vector<sim::Measurement> measured = sim::load_measurements({}, skipped);
  sim::ValidationReport report = sim::validate(sim::shipped_calibration(), measured, false);
  store_validation(path, sim::shipped_calibration(), measured, report, "a", "published");
  const std::int64_t rows = count(path, "SELECT count(*) FROM validation");
  REQUIRE(rows == static_cast<std::int64_t>(report.rows.size()));
  REQUIRE(count(path, "SELECT count(*) FROM measurements WHERE kind IN ('decode_attention', 'prefill_attention', 'gemm', 'comm', 'mla_decode') AND source = 'a' AND provenance = 'published'") == static_cast<std::int64_t>(measured.size()));
  sim::ValidationRow twin;
  twin.kind = "e2e_static", twin.gpu = twin.profile = twin.kv_dtype = "*", twin.subset = "all";
  report.rows.push_back(twin);
  report.rows.push_back(twin);
  REQUIRE(sentence_of([&] { store_validation(path, sim::shipped_calibration(), {}, report, "b", "measured"); }) ==
          "validation has two rows of e2e_static, gpu *, profile *, kv_dtype *, subset all, must have one; figures of several files are to be judged together");
  REQUIRE(count(path, "SELECT count(*) FROM validation") == rows);
  REQUIRE(count(path, "SELECT count(*) FROM measurements") == static_cast<std::int64_t>(measured.size()));
  report.rows.pop_back();
  store_validation(path, sim::shipped_calibration(), {}, report, "b", "measured");
  REQUIRE(count(path, "SELECT count(*) FROM validation") == rows + 1);
  REQUIRE(count(path, "SELECT count(*) FROM measurements") == 0);
}

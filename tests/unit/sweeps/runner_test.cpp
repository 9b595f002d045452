#include "sweeps/runner.hpp"

#include "sweeps/json.hpp"
#include "sweeps/summary.hpp"
#include "tests/catch.hpp"
#include "tests/unit/sweeps/sweep_support.hpp"

using namespace kvatlas;
using namespace kvatlas::sweep;
using namespace kvatlas::sweep::testing;

namespace {
std::int64_t count(const std::filesystem::path& store, const char* sql) {
  Database db(store, Database::Mode::read);
  return db.integer(sql);
}
}  // namespace

TEST_CASE("a sweep stores one row for each configuration, context and batch", "[unit]") {
  const TempFolder folder;
  const SweepReport r = run_sweep(parse_spec(small_spec(), "s"), folder / "a.sqlite");
  REQUIRE(r.points == 8 * 5 * 4);
  REQUIRE(r.stored == r.points);
  REQUIRE(r.skipped == 0);
  REQUIRE(r.infeasible == 0);
  REQUIRE_FALSE(r.interrupted);
  REQUIRE(count(folder / "a.sqlite", "SELECT count(*) FROM predictions") == r.points);
  REQUIRE(count(folder / "a.sqlite", "SELECT count(*) FROM runs WHERE state = 'complete' AND points = 160") == 1);
  REQUIRE(count(folder / "a.sqlite", "SELECT count(*) FROM predictions p JOIN configurations c ON c.id = p.configuration JOIN methods t ON t.id = c.method "
                                     "WHERE t.recipe = 'full' AND fits AND speedup IS NOT 1.0") == 0);
}

TEST_CASE("rows do not depend on the number of workers", "[unit]") {
  const TempFolder folder;
  const Spec spec = parse_spec(small_spec("\"1K..32K+1K\"", "\"to_memory_limit\""), "s");
  for (const int jobs : {1, 2, 5}) run_sweep(spec, folder / cat("j", jobs), {.jobs = jobs, .shard = {}, .progress = {}, .commit_points = 100});
  REQUIRE(dump_of(folder / "j1") == dump_of(folder / "j2"));
  REQUIRE(dump_of(folder / "j1") == dump_of(folder / "j5"));
  REQUIRE(evaluate_sweep(spec, {.jobs = 1, .shard = {}, .progress = {}}).checksum == evaluate_sweep(spec, {.jobs = 3, .shard = {}, .progress = {}}).checksum);
}

TEST_CASE("a sweep that is run again stores nothing, a larger one only what is new", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  run_sweep(parse_spec(small_spec(), "s"), path);
  const std::string before = dump_of(path);
  const SweepReport again = run_sweep(parse_spec(small_spec(), "s"), path);
  REQUIRE(again.stored == 0);
  REQUIRE(again.skipped == 160);
  REQUIRE(dump_of(path) == before);
  const SweepReport more = run_sweep(parse_spec(small_spec("\"1K..32Kx2\""), "s"), path);
  REQUIRE(more.stored == 32);
  REQUIRE(more.skipped == 160);
  run_sweep(parse_spec(small_spec("\"1K..32Kx2\""), "s"), folder / "b.sqlite");
  REQUIRE(dump_of(path) == dump_of(folder / "b.sqlite"));
}

TEST_CASE("batches to the memory limit all fit, and contexts at which nothing fits keep their sentence", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  const Spec spec = parse_spec("{\"models\": [\"llama-2-13b\"], \"gpus\": [\"rtx-4090\", \"h100-sxm\"], \"methods\": [\"full\"], \"contexts\": [1024, 65536], \"batches\": \"to_memory_limit\"}", "s");
  const SweepReport r = run_sweep(spec, path);
  REQUIRE(r.stored > 10);
  REQUIRE(count(path, "SELECT count(*) FROM predictions WHERE NOT fits") == 0);
  REQUIRE(r.infeasible == count(path, "SELECT count(*) FROM infeasible"));
  REQUIRE(count(path, "SELECT count(*) FROM infeasible WHERE context = 65536 AND length(sentence) > 10") >= 1);
}

TEST_CASE("a configuration that cannot be is stored with its sentence, not dropped", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  // A rule that leaves layers without a method cannot serve any model.
  const Spec spec = parse_spec("{\"models\": [\"llama-3.2-1b\"], \"gpus\": [\"h100-sxm\"], \"methods\": [\"first2:full\", \"full\"], \"contexts\": [1024], \"batches\": [1]}", "s");
  const SweepReport r = run_sweep(spec, path);
  REQUIRE(r.points == 1);
  REQUIRE(r.infeasible == 1);
  Database db(path, Database::Mode::read);
  Statement s(db, "SELECT sentence, context FROM infeasible");
  REQUIRE(s.step());
  REQUIRE(s.text(0) == "layer 2 matches no rule; end the rules with *:METHOD");
  REQUIRE(s.integer(1) == 0);
  REQUIRE(run_sweep(spec, folder / "b.sqlite").infeasible == 1);
  REQUIRE(run_sweep(spec, folder / "b.sqlite").infeasible == 1);
}

TEST_CASE("a stop ends the run after what is under way, and the next call completes it", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  const Spec spec = parse_spec(small_spec("\"1K..32K+1K\""), "s");
  std::atomic<bool> stop{true};
  const SweepReport none = run_sweep(spec, path, {.jobs = 1, .shard = {}, .stop = &stop, .progress = {}});
  REQUIRE(none.interrupted);
  REQUIRE(none.stored == 0);
  REQUIRE(count(path, "SELECT count(*) FROM runs WHERE state = 'interrupted'") == 1);
  const SweepReport rest = run_sweep(spec, path);
  REQUIRE_FALSE(rest.interrupted);
  REQUIRE(rest.stored == 8 * 32 * 4);
  REQUIRE(count(path, "SELECT count(*) FROM runs WHERE state = 'complete'") == 1);
}

TEST_CASE("figures of other code are noticed when a run goes on", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  run_sweep(parse_spec(small_spec(), "s"), path);
  { Database(path, Database::Mode::write).exec("UPDATE predictions SET step_s = step_s * 1.5"); }
  const std::string sentence = sentence_of([&] { run_sweep(parse_spec(small_spec("\"1K..32Kx2\""), "s"), path); });
  REQUIRE(sentence.find("the store holds other figures for {") == 0);
  REQUIRE(sentence.find("it was written by other code, sweep into a new file and compare the two with diff") != std::string::npos);
}

TEST_CASE("workloads are stored beside the microscope", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  const Spec spec = parse_spec("{\"models\": [\"llama-3.2-1b\"], \"gpus\": [\"h100-sxm\"], \"methods\": [\"full\", \"sinks=4:full;full\"], \"workloads\": [{\"prompt\": \"4K\", \"output\": 256}, {\"prompt\": \"4K\", \"output\": 256, \"concurrency\": 4, \"slo\": {\"tpot_ms\": 0.001}}]}", "s");
  const SweepReport r = run_sweep(spec, path);
  REQUIRE(r.points == 4);
  REQUIRE(count(path, "SELECT count(*) FROM workload_predictions WHERE feasible AND requests_per_s > 0 AND speedup > 0") == 2);
  REQUIRE(count(path, "SELECT count(*) FROM workload_predictions WHERE NOT feasible AND requests_per_s IS NULL AND length(why_not) > 5") == 2);
  REQUIRE(run_sweep(spec, path).skipped == 4);
}

TEST_CASE("a report says what was stored, and nothing is stored by an evaluation", "[unit]") {
  const TempFolder folder;
  const Spec spec = parse_spec(small_spec("\"1K..16Kx2\"", "[1, 2, 4, 8]", ", \"workloads\": [{\"prompt\": \"4K\", \"output\": 64}]"), "s");
  const SweepReport evaluated = evaluate_sweep(spec).report;
  REQUIRE(evaluated.points == 168);
  REQUIRE(evaluated.stored == 0);
  const nlohmann::json none = to_json(evaluated, std::nullopt);
  REQUIRE(none["db"].is_null());
  REQUIRE(none["points_per_s"].is_null());
  REQUIRE(none["evaluated_per_s"].get<double>() > 0);
  const nlohmann::json first = to_json(run_sweep(spec, folder / "a"), "a");
  REQUIRE(first["db"] == "a");
  REQUIRE(first["points_per_s"].get<double>() > 0);
  REQUIRE(to_json(run_sweep(spec, folder / "a"), "a")["points_per_s"].is_null());
  const StoreSummary summary = summarize(folder / "a");
  REQUIRE(summary.points == 160);
  REQUIRE(summary.workloads == 8);
}

TEST_CASE("progress counts up to the end and reads well", "[unit]") {
  const TempFolder folder;
  Progress last;
  run_sweep(parse_spec(small_spec(), "s"), folder / "a.sqlite", {.shard = {}, .progress = [&](const Progress& p) { last = p; }});
  REQUIRE(last.configurations == 8);
  REQUIRE(last.configurations_done == 8);
  REQUIRE(last.stored == 160);
  const Progress p{.configurations = 3015, .configurations_done = 412, .stored = 104210, .points_per_s = 231000, .eta_s = 72};
  REQUIRE(progress_line(p) == "  412/3,015 configurations  104,210 points  231,000/s  ETA 1:12");
  REQUIRE(sentence_of([&] { run_sweep(parse_spec(small_spec(), "s"), folder / "c.sqlite", {.jobs = -1, .shard = {}, .progress = {}}); }) == "jobs is -1, must be from 1 to 1024, or 0 for one a core");
}

#include "sweeps/merge.hpp"

#include "sweeps/evidence.hpp"
#include "sweeps/json.hpp"
#include "sweeps/pareto.hpp"
#include "sweeps/quality.hpp"
#include "sweeps/recommend.hpp"
#include "sweeps/runner.hpp"
#include "sweeps/schema.hpp"
#include "sweeps/summary.hpp"
#include "tests/catch.hpp"
#include "tests/unit/sweeps/sweep_support.hpp"

using namespace kvatlas;
using namespace kvatlas::sweep;
using namespace kvatlas::sweep::testing;
using Paths = std::vector<std::filesystem::path>;

namespace {
const std::string kWorkload = ", \"workloads\": [{\"prompt\": \"4K\", \"output\": 64}]";

Paths shards(const TempFolder& folder, const Spec& spec, int n) {
  Paths out;
  for (int i = 1; i <= n; ++i) {
    out.push_back(folder / cat("shard", i));
    run_sweep(spec, out.back(), {.shard = {i, n}, .progress = {}});
  }
  return out;
}

std::int64_t count(const std::filesystem::path& path, const std::string& sql) { return Database(path, Database::Mode::read).integer(sql); }
void change(const std::filesystem::path& path, const std::string& sql) { Database(path, Database::Mode::write).exec(sql); }

ClaimRow claim(const char* method, double ours) {
  return {.method = method, .metric = "speedup", .unit = "x", .setup = "a", .verdict = "reproduced", .why = "b", .source = "c", .provenance = "computed", .change = "", .published = 2.0, .ours = ours, .ours_if = {}};
}

constexpr const char* kQuality = "INSERT INTO quality(model, recipe, quality_model, metric, value, retained, context, protocol, grade, source, provenance) VALUES";
constexpr const char* kMeasurement = "INSERT INTO measurements(kind, gpu, profile, setup, value, unit, source, provenance) VALUES";
constexpr const char* kValidation = "INSERT INTO validation VALUES('gemm', '*', '*', '*', 'all', 4, 0.1, 0.1, 0.2, 0, 0.8, 0.3, 0.4, 0.5)";

/// What a program of an older schema would have left: only the migrations up to it were run, rows are those of `from`.
void make_older(const std::filesystem::path& path, int version, const std::filesystem::path& from) {
  Database db(path, Database::Mode::create);
  prepare_schema(db, version);
  const std::string name = from.string();
  {
    Statement s(db, "ATTACH ? AS newer");
    s.bind(1, std::string_view(name)).run();
  }
  for (const char* table : {"models", "gpus", "methods", "configurations", "workloads", "predictions", "workload_predictions", "infeasible", "runs"})
    db.exec(cat("INSERT INTO main.", table, " SELECT * FROM newer.", table));
  build_index(db);
}
}  // namespace

TEST_CASE("evidence of two shards that is equal becomes one", "[unit]") {
  const TempFolder folder;
  const Paths parts = shards(folder, parse_spec(small_spec(), "s"), 2);
  for (const auto& part : parts) {
    store_claims(part, {claim("quest", 2.1), claim("kivi", 1.0), claim("kivi", 1.0)});
    change(part, cat(kQuality, "('m', 'full', 'q', 'perplexity', 6.5, 1, NULL, 'p', 'P', 's', 'published'), ('m', 'full', 'q', 'perplexity', 6.4, 1, 512, 'p', 'M', 's', 'measured')"));
    change(part, cat(kMeasurement, "('gemm', 'g', 'p', 'a', 1.5, 's', 'f', 'measured'), ('gemm', 'g', 'p', 'a', 1.5, 's', 'f', 'measured'); ", kValidation));
  }
  change(parts[1], cat(kQuality, "('m', 'kivi', 'q', 'perplexity', 6.6, 0.98, NULL, 'p', 'P', 's', 'published')"));
  const MergeReport r = merge_stores(folder / "out", {parts[1], parts[0], parts[1]});
  REQUIRE(r.conflicts == 0);
  REQUIRE(r.written);
  REQUIRE(merge_stores(folder / "out", {parts[0]}).conflicts == 0);
  for (const auto& [table, rows] : std::vector<std::pair<const char*, int>>{{"claims", 3}, {"quality", 3}, {"measurements", 2}, {"validation", 1}}) {
    CAPTURE(table);
    REQUIRE(count(folder / "out", cat("SELECT count(*) FROM ", table)) == rows);
  }
}

TEST_CASE("figures of quality under other settings are other rows when stores merge", "[unit]") {
  const TempFolder folder;
  const Paths parts = shards(folder, parse_spec(small_spec(), "s"), 2);
  const QualityRow base{.model = "m", .recipe = "kivi", .quality_model = "w", .metric = "perplexity", .value = 6.5, .retained = 0.9, .context = 1024, .protocol = "p", .n = 256,
                        .ci95_low = {}, .ci95_high = {}, .grade = "M", .source = "s", .dtype = "bf16", .seed = 1, .text_hash = "one", .scored = 256, .windows = 1, .chunk = 64};
  std::vector<QualityRow> rows{base};
  const auto other = [&](auto&& change_setting) {
    rows.push_back(base);
    change_setting(rows.back());
    rows.back().value = 6.5 + 0.1 * static_cast<double>(rows.size());
  };
  other([](QualityRow& r) { r.dtype = "f32"; });
  other([](QualityRow& r) { r.seed = 2; });
  other([](QualityRow& r) { r.text_hash = "two"; });
  other([](QualityRow& r) { r.scored = 128; });
  other([](QualityRow& r) { r.windows = 4; });
  other([](QualityRow& r) { r.chunk = 32; });
  store_quality(parts[0], rows);
  store_quality(parts[1], std::vector{rows[0], rows[3]});
  for (int round = 0; round < 2; ++round) {  // the second time OUT itself is an input
    const MergeReport r = merge_stores(folder / "out", parts);
    REQUIRE(r.conflicts == 0);
    REQUIRE(r.written);
    REQUIRE(count(folder / "out", "SELECT count(*) FROM quality") == 7);
    REQUIRE(count(folder / "out", "SELECT count(*) FROM quality WHERE text_hash = 'two' AND seed = 1 AND scored = 256 AND windows = 1 AND chunk = 64 AND dtype = 'bf16'") == 1);
  }
  rows[3].value = 9;
  store_quality(parts[1], std::vector{rows[3]});
  const MergeReport r = merge_stores(folder / "out", {parts[1]});
  REQUIRE(r.conflicts == 1);
  REQUIRE(r.examples == std::vector<std::string>{cat("quality: perplexity of kivi on m is another row in ", parts[1].string())});
}

TEST_CASE("evidence that differs between shards is a conflict, never a mixture", "[unit]") {
  const TempFolder folder;
  const Paths parts = shards(folder, parse_spec(small_spec(), "s"), 2);
  for (const auto& part : parts) {
    store_claims(part, {claim("quest", 2.1), claim("kivi", 1.0)});
    change(part, cat(kQuality, "('m', 'full', 'q', 'perplexity', 6.5, 1, NULL, 'p', 'P', 's', 'published')"));
    change(part, cat(kMeasurement, "('gemm', 'g', 'p', 'a', 1.5, 's', 'f', 'measured'); ", kValidation));
  }
  struct Change {
    const char* sql;
    const char* example;
  };
  for (const Change& c : {Change{"UPDATE claims SET ours = 1.5 WHERE method = 'kivi'", "claims: rows of another run of claims"},
                          Change{"DELETE FROM claims WHERE method = 'kivi'", "claims: rows of another run of claims"},
                          Change{"INSERT INTO claims(method, metric, setup, verdict, why, source, provenance) SELECT method, metric, setup, verdict, why, source, provenance FROM claims WHERE method = 'kivi'", "claims: rows of another run of claims"},
                          Change{"UPDATE measurements SET value = 1.6", "validation: rows of another run of validate"},
                          Change{"UPDATE validation SET bias = 0.01", "validation: rows of another run of validate"},
                          Change{"UPDATE quality SET value = 6.6", "quality: perplexity of full on m is another row"},
                          Change{"UPDATE caches SET bytes = bytes + 1 WHERE context = 1024 AND method = (SELECT id FROM methods WHERE recipe = 'full')", "ledger of full on llama-3.2-1b at context 1024 has other bytes"},
                          Change{"UPDATE ledgers SET bytes = bytes + 1 WHERE context = 1024 AND method = (SELECT id FROM methods WHERE recipe = 'full')", "ledger of full on llama-3.2-1b at context 1024 has other bytes"},
                          Change{"UPDATE ledgers SET component = 'other' WHERE context = 1024 AND method = (SELECT id FROM methods WHERE recipe = 'full')", "ledger of full on llama-3.2-1b at context 1024 has other bytes"}}) {
    CAPTURE(c.sql);
    const auto changed = folder / "changed";
    std::filesystem::copy_file(parts[1], changed, std::filesystem::copy_options::overwrite_existing);
    change(changed, c.sql);
    const MergeReport r = merge_stores(folder / "out", {parts[0], changed});
    REQUIRE(r.conflicts == 1);
    REQUIRE_FALSE(r.written);
    REQUIRE(r.examples == std::vector<std::string>{cat(c.example, " in ", changed.string())});
    REQUIRE_FALSE(std::filesystem::exists(folder / "out"));
    // By force the input named first wins, whole.
    merge_stores(folder / "forced", {parts[0], changed}, true);
    merge_stores(folder / "clean", {parts[0], parts[1]});
    for (const char* table : {"claims", "quality", "measurements", "validation", "caches", "ledgers"}) {
      CAPTURE(table);
      Database db(folder / "forced", Database::Mode::read);
      const std::string name = (folder / "clean").string();
      {
        Statement s(db, "ATTACH ? AS clean");
        s.bind(1, std::string_view(name)).run();
      }
      REQUIRE(db.integer(cat("SELECT count(*) FROM (SELECT * FROM main.", table, " EXCEPT SELECT * FROM clean.", table, ")")) == 0);
      REQUIRE(db.integer(cat("SELECT count(*) FROM (SELECT * FROM clean.", table, " EXCEPT SELECT * FROM main.", table, ")")) == 0);
    }
    std::filesystem::remove(folder / "forced");
    std::filesystem::remove(folder / "clean");
  }
}

TEST_CASE("stores of older schemas are read as they are and merged by a migrated copy", "[unit]") {
  const TempFolder folder;
  const Spec spec = parse_spec(small_spec("\"1K..16Kx2\"", "[1, 2, 4, 8]", kWorkload), "s");
  run_sweep(spec, folder / "whole");
  const Paths parts = shards(folder, spec, 2);
  for (const int version : {1, 2}) {
    CAPTURE(version);
    const auto old = folder / cat("old", version);
    make_older(old, version, folder / "whole");
    REQUIRE(count(old, "SELECT count(*) FROM sqlite_schema WHERE name = 'caches'") == 0);
    REQUIRE(dump_of(old) == dump_of(folder / "whole"));
    REQUIRE(pareto(old, {.x = "step_ms", .y = "tokens_per_s", .where = ""}).size() == pareto(folder / "whole", {.x = "step_ms", .y = "tokens_per_s", .where = ""}).size());
    REQUIRE(select_points(old, "context=4K", 10).size() == 10);
    REQUIRE(diff_stores(old, folder / "whole").equal == 168);
    REQUIRE(diff_stores(folder / "whole", old).equal == 168);
    REQUIRE(summarize(old).points == 160);
    REQUIRE_FALSE(quality_of_store(old.string()) == nullptr);
    const auto half = folder / cat("half", version);
    make_older(half, version, parts[1]);
    const MergeReport r = merge_stores(folder / cat("out", version), {half, parts[0]});
    REQUIRE(r.conflicts == 0);
    REQUIRE(dump_of(folder / cat("out", version)) == dump_of(folder / "whole"));
    REQUIRE(count(folder / cat("out", version), "SELECT count(*) FROM caches") == count(parts[0], "SELECT count(*) FROM caches"));
    REQUIRE(count(half, "PRAGMA user_version") == version);  // the input stays what it was
    REQUIRE(merge_stores(half, {parts[0]}).written);         // an older OUT becomes one of this version
    REQUIRE(count(half, "PRAGMA user_version") == kSchemaVersion);
    REQUIRE(dump_of(half) == dump_of(folder / "whole"));
  }
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) REQUIRE(entry.path().string().find(".merging") == std::string::npos);
}

TEST_CASE("shards merged in any order, and repeated, equal the whole", "[unit]") {
  const TempFolder folder;
  const Spec spec = parse_spec(small_spec("\"1K..16Kx2\"", "[1, 2, 4, 8]", kWorkload), "s");
  run_sweep(spec, folder / "whole");
  const std::string whole = dump_of(folder / "whole");
  const Paths parts = shards(folder, spec, 5);
  const MergeReport r = merge_stores(folder / "out", parts);
  REQUIRE(r.rows == 160 + 8);
  REQUIRE(r.conflicts == 0);
  REQUIRE(r.written);
  REQUIRE(dump_of(folder / "out") == whole);
  merge_stores(folder / "back", {parts[4], parts[2], parts[2], parts[0], parts[1], parts[3]});
  REQUIRE(dump_of(folder / "back") == whole);
  REQUIRE(merge_stores(folder / "out", {parts[3], folder / "back"}).rows == 168);
  REQUIRE(dump_of(folder / "out") == whole);
  merge_stores(folder / "step", {parts[0], parts[1], parts[2]});
  merge_stores(folder / "step", {parts[3], parts[4]});
  REQUIRE(dump_of(folder / "step") == whole);
  REQUIRE(run_sweep(spec, folder / "step").stored == 0);
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) REQUIRE(entry.path().string().find(".merging") == std::string::npos);
}

TEST_CASE("a figure that differs is a conflict, and nothing is written", "[unit]") {
  const TempFolder folder;
  const Spec spec = parse_spec(small_spec("\"1K..16Kx2\"", "[1, 2, 4, 8]", kWorkload), "s");
  run_sweep(spec, folder / "a");
  run_sweep(spec, folder / "b");
  {
    Database db(folder / "b", Database::Mode::write);
    db.exec("UPDATE predictions SET energy_j = energy_j + 1e-9 WHERE id IN (3, 77); UPDATE workload_predictions SET ttft_s = ttft_s * 2 WHERE id = 1");
  }
  const MergeReport r = merge_stores(folder / "out", {folder / "a", folder / "b"});
  REQUIRE(r.conflicts == 3);
  REQUIRE_FALSE(r.written);
  REQUIRE(r.examples.size() == 3);
  for (const std::string& example : r.examples) {
    CAPTURE(example);
    REQUIRE(example.find((folder / "b").string()) != std::string::npos);
    REQUIRE(example.find(".merging") == std::string::npos);
  }
  REQUIRE_FALSE(std::filesystem::exists(folder / "out"));
  const MergeReport forced = merge_stores(folder / "out", {folder / "a", folder / "b"}, true);
  REQUIRE(forced.conflicts == 3);
  REQUIRE(forced.written);
  REQUIRE(dump_of(folder / "out") == dump_of(folder / "a"));
}

TEST_CASE("stores of two versions of the code merge by force only", "[unit]") {
  const TempFolder folder;
  const Spec spec = parse_spec(small_spec(), "s");
  const Paths parts = shards(folder, spec, 2);
  { Database(parts[1], Database::Mode::write).exec("UPDATE meta SET value = '0.0.1'"); }
  const std::string sentence = sentence_of([&] { merge_stores(folder / "out", parts); });
  REQUIRE(sentence.find(parts[1].string() + ": written by kvatlas 0.0.1, " + parts[0].string() + " by ") == 0);
  REQUIRE(merge_stores(folder / "out", parts, true).written);
  REQUIRE(sentence_of([&] { merge_stores(folder / "x", {}); }) == "merge has no input, must have at least one store");
  REQUIRE(sentence_of([&] { merge_stores(folder / "x", {folder / "none"}); }) == (folder / "none").string() + ": no such store");
}

TEST_CASE("diff compares workloads as it compares points", "[unit]") {
  const TempFolder folder;
  run_sweep(parse_spec(small_spec("\"1K..16Kx2\"", "[1, 2, 4, 8]", kWorkload), "s"), folder / "a");
  run_sweep(parse_spec(small_spec("\"1K..16Kx2\"", "[1, 2, 4, 8]", ", \"workloads\": [{\"prompt\": [\"4K\", \"8K\"], \"output\": 64}]"), "s"), folder / "b");
  const DiffReport same = diff_stores(folder / "a", folder / "b");
  REQUIRE(same.changed_count == 0);
  REQUIRE(same.equal == 168);
  REQUIRE(same.only_a == 0);
  REQUIRE(same.only_b == 8);
  {
    Database db(folder / "b", Database::Mode::write);
    db.exec("UPDATE workload_predictions SET ttft_s = ttft_s * 3, requests_per_s = requests_per_s / 2 WHERE id = "
            "(SELECT min(p.id) FROM workload_predictions p JOIN workloads w ON w.id = p.workload WHERE w.prompt = 4096)");
  }
  const DiffReport r = diff_stores(folder / "a", folder / "b", 0.01);
  REQUIRE(r.changed_count == 1);
  REQUIRE(r.equal == 167);
  REQUIRE(r.changed[0].prompt == 4096);
  REQUIRE(r.changed[0].output == 64);
  REQUIRE(r.changed[0].context == 4160);
  REQUIRE(r.changed[0].figures.size() == 2);
  REQUIRE(r.changed[0].figures[0].figure == "requests_per_s");
  REQUIRE(r.changed[0].figures[1].figure == "ttft_s");
  REQUIRE(r.changed[0].figures[1].change == Approx(2.0));
  const nlohmann::json row = to_json(r)["changed"][0];
  REQUIRE(row["prompt"] == 4096);
  REQUIRE(row["batch"].is_null());
}

TEST_CASE("diff names the points that changed past the threshold, worst first", "[unit]") {
  const TempFolder folder;
  run_sweep(parse_spec(small_spec(), "s"), folder / "a");
  run_sweep(parse_spec(small_spec("\"1K..32Kx2\""), "s"), folder / "b");
  const DiffReport same = diff_stores(folder / "a", folder / "b");
  REQUIRE(same.changed.empty());
  REQUIRE(same.equal == 160);
  REQUIRE(same.only_a == 0);
  REQUIRE(same.only_b == 32);
  {
    Database db(folder / "b", Database::Mode::write);
    db.exec("UPDATE predictions SET step_s = step_s * 1.005 WHERE context = 1024 AND batch = 1; UPDATE predictions SET step_s = step_s * 2, speedup = NULL WHERE context = 2048 AND batch = 8");
  }
  REQUIRE(diff_stores(folder / "a", folder / "b").changed_count == 16);
  const DiffReport past = diff_stores(folder / "a", folder / "b", 0.01);
  REQUIRE(past.changed_count == 8);
  REQUIRE(past.equal == 152);
  REQUIRE(past.changed.front().context == 2048);
  REQUIRE(past.changed.front().figures.front().figure == "step_s");
  REQUIRE(past.changed.front().figures.front().change == 1.0);
  REQUIRE(diff_stores(folder / "a", folder / "b", 0.01, 3).changed.size() == 3);
  REQUIRE(sentence_of([&] { diff_stores(folder / "a", folder / "b", -1); }) == "threshold is -1, must be a share from 0 (0.01 is 1 %)");
}

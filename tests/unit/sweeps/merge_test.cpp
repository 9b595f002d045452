#include "sweeps/merge.hpp"

#include "sweeps/json.hpp"
#include "sweeps/runner.hpp"
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
}  // namespace

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

#include "sweeps/quality.hpp"
#include "sweeps/store.hpp"

#include <unistd.h>

#include "sweeps/runner.hpp"
#include "sweeps/schema.hpp"
#include "tests/catch.hpp"
#include "tests/unit/sweeps/sweep_support.hpp"

using namespace kvatlas;
using namespace kvatlas::sweep;
using namespace kvatlas::sweep::testing;

namespace {
std::string opening(const std::filesystem::path& path) {
  return sentence_of([&] { Store store(path); });
}
std::string reading(const std::filesystem::path& path) {
  return sentence_of([&] {
    std::optional<Database> db;
    open_for_reading(db, path);
  });
}
}  // namespace

TEST_CASE("a new store has its version, its tables and strict types", "[unit]") {
  const TempFolder folder;
  { Store store(folder / "a.sqlite"); }
  Database db(folder / "a.sqlite", Database::Mode::read);
  REQUIRE(db.integer("PRAGMA user_version") == kSchemaVersion);
  REQUIRE(db.integer("PRAGMA application_id") == kApplicationId);
  for (const char* table : {"models", "gpus", "methods", "configurations", "workloads", "predictions", "workload_predictions", "infeasible", "runs", "quality", "measurements", "claims", "imported", "caches", "ledgers",
                            "validation"})
    REQUIRE(db.integer(cat("SELECT strict FROM pragma_table_list WHERE name = '", table, "'")) == 1);
  Statement mode(db, "PRAGMA journal_mode");
  REQUIRE(mode.step());
  REQUIRE(mode.text(0) == "wal");
}

TEST_CASE("each store that cannot be used gets one sentence", "[unit]") {
  const TempFolder folder;
  const auto at = [&](const std::string& name) { return folder / name; };

  write_file(at("text.sqlite"), std::string(5000, 'x'));
  REQUIRE(opening(at("text.sqlite")) == at("text.sqlite").string() + ": not a kvatlas store, the file is no SQLite database");
  REQUIRE(reading(at("text.sqlite")) == at("text.sqlite").string() + ": not a kvatlas store, the file is no SQLite database");

  REQUIRE(opening(folder.path()) == folder.path().string() + ": is a folder, must be a file");
  REQUIRE(reading(at("none.sqlite")) == at("none.sqlite").string() + ": no such store");
  REQUIRE_FALSE(std::filesystem::exists(at("none.sqlite")));
  REQUIRE(opening(at("no/such/a.sqlite")) == at("no/such/a.sqlite").string() + ": the folder " + at("no/such").string() + " does not exist");

  {
    Database other(at("other.sqlite"), Database::Mode::create);
    other.exec("CREATE TABLE notes(text TEXT)");
  }
  REQUIRE(opening(at("other.sqlite")) == at("other.sqlite").string() + ": not a kvatlas store, an SQLite database of something else");
  REQUIRE(reading(at("other.sqlite")) == at("other.sqlite").string() + ": not a kvatlas store, an SQLite database of something else");

  { Store store(at("newer.sqlite")); }
  { Database(at("newer.sqlite"), Database::Mode::write).exec(cat("PRAGMA user_version=", kSchemaVersion + 1)); }
  const std::string newer = cat(at("newer.sqlite").string(), ": store version ", kSchemaVersion + 1, " is newer than this program's ", kSchemaVersion, "; use the program that wrote it, or a newer one");
  REQUIRE(opening(at("newer.sqlite")) == newer);
  REQUIRE(reading(at("newer.sqlite")) == newer);

  { Store store(at("code.sqlite")); }
  { Database(at("code.sqlite"), Database::Mode::write).exec("UPDATE meta SET value = '0.0.1'"); }
  REQUIRE(opening(at("code.sqlite")) == cat(at("code.sqlite").string(), ": written by kvatlas 0.0.1, this is ", code_version(), "; sweep into a new file and compare the two with diff"));

  Store held(at("held.sqlite"));
  REQUIRE(opening(at("held.sqlite")) == at("held.sqlite").string() + ": the store is in use by another process, wait until it ends");
}

TEST_CASE("a folder that refuses writing gets one sentence", "[unit]") {
  const TempFolder folder;
  // The superuser may write anywhere but in the kernel's own folders.
  const bool root = geteuid() == 0;
  if (!root) std::filesystem::permissions(folder.path(), std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  const std::filesystem::path path = root ? std::filesystem::path("/proc/kvatlas.sqlite") : folder / "a.sqlite";
  REQUIRE(opening(path) == path.string() + ": the store cannot be created or opened, file or folder refuses access");
  if (!root) std::filesystem::permissions(folder.path(), std::filesystem::perms::owner_all);
}

TEST_CASE("a finished store is read without leaving files, and from a folder that refuses writing", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a b.sqlite";
  run_sweep(parse_spec(small_spec(), "s"), path);
  const std::string dump = dump_of(path);
  const auto files = [&] { return std::distance(std::filesystem::directory_iterator(folder.path()), std::filesystem::directory_iterator()); };
  REQUIRE(files() == 1);
  { Database(path, Database::Mode::write).exec("PRAGMA journal_mode=WAL"); }  // as an older program left it
  std::filesystem::permissions(folder.path(), static_cast<std::filesystem::perms>(0555));
  std::filesystem::permissions(path, static_cast<std::filesystem::perms>(0444));
  const bool root = geteuid() == 0;  // the superuser may write anywhere, so somebody else reads
  if (root) REQUIRE(seteuid(65534) == 0);
  std::string again;
  const std::string error = sentence_of([&] { again = dump_of(path); });
  if (root) REQUIRE(seteuid(0) == 0);
  REQUIRE(error == "no error");
  REQUIRE(again == dump);
  REQUIRE(files() == 1);
  std::filesystem::permissions(folder.path(), std::filesystem::perms::owner_all);
}

TEST_CASE("a damaged store is reported, not read as something else", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  run_sweep(parse_spec(small_spec("\"1K..64K+1K\""), "s"), path);
  const auto size = std::filesystem::file_size(path);
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(8192);  // every page after the header's
    file << std::string(static_cast<std::size_t>(size) - 8192, '\x5a');
  }
  const std::string sentence = sentence_of([&] { run_sweep(parse_spec(small_spec(), "s"), path); });
  REQUIRE(sentence.find(path.string() + ": the store is damaged (") == 0);
  REQUIRE(sentence_of([&] { dump_of(path); }).find(path.string() + ": the store is damaged (") == 0);
  std::filesystem::resize_file(path, size / 2 + 100);
  REQUIRE(sentence_of([&] { dump_of(path); }).find(path.string() + ": the store is damaged (") == 0);
}

TEST_CASE("a full disk ends the sweep with one sentence, and the run goes on later", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  const Spec spec = parse_spec(small_spec("\"1K..128K+1K\"", "\"1..16\""), "s");
  Store::Run run;
  {
    Store store(path);
    const WorkList work = work_list(spec);
    run = store.begin(spec, work, {});
    store.database().exec(cat("PRAGMA max_page_count=", store.database().integer("PRAGMA page_count") + 4));
    Block block;
    block.points.resize(4096);
    for (std::size_t i = 0; i < block.points.size(); ++i) block.points[i].key = murmur3(&i, sizeof i);
    REQUIRE(sentence_of([&] {
              for (int i = 0; i < 50; ++i) store.add(run, block);
              store.commit_batch();
            }) == path.string() + ": the disk is full; what was committed is kept, free space and run the same command again");
  }
  run_sweep(spec, path);
  run_sweep(spec, folder / "b.sqlite");
  REQUIRE(dump_of(path) == dump_of(folder / "b.sqlite"));
}

TEST_CASE("an older store is migrated when it is written", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  run_sweep(parse_spec(small_spec(), "s"), path);
  const std::string before = dump_of(path);
  {
    Database db(path, Database::Mode::write);
    db.exec("DROP VIEW points; DROP TABLE caches; DROP TABLE ledgers; DROP TABLE validation");
    for (const char* column : {"subset", "predicted", "low", "high"}) db.exec(cat("ALTER TABLE measurements DROP COLUMN ", column));
    for (const char* column : {"unit", "ours_if", "change"}) db.exec(cat("ALTER TABLE claims DROP COLUMN ", column));
    db.exec("PRAGMA user_version=1");
  }
  REQUIRE(dump_of(path) == before);  // readers take it as it is
  std::optional<Database> refused;
  REQUIRE(sentence_of([&] { open_for_reading(refused, path, 3); }) == cat(path.string(), ": store version 1 lacks what is asked for, it must be at least 3; run any sweep into it to migrate it"));
  refused.reset();
  { Store store(path); }
  REQUIRE(dump_of(path) == before);
  Database db(path, Database::Mode::read);
  REQUIRE(db.integer("SELECT count(*) FROM points") == db.integer("SELECT count(*) FROM predictions"));
}

TEST_CASE("figures of quality under two settings stand beside each other, also in a store of version 3", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  { Store store(path); }
  {
    Database db(path, Database::Mode::write);
    db.exec("DROP TABLE quality; CREATE TABLE quality(id INTEGER PRIMARY KEY, model TEXT NOT NULL, recipe TEXT NOT NULL, quality_model TEXT NOT NULL,"
            " metric TEXT NOT NULL, value REAL NOT NULL, retained REAL, context INTEGER, protocol TEXT NOT NULL, n INTEGER, ci95_low REAL, ci95_high REAL,"
            " grade TEXT NOT NULL, source TEXT NOT NULL, provenance TEXT NOT NULL, UNIQUE(model, recipe, quality_model, metric, context, protocol)) STRICT;"
            "INSERT INTO quality VALUES(7, 'm', 'kivi', 'w', 'perplexity', 3.5, 0.9, 1024, 'a', 256, 3.4, 3.6, 'M', 'a run', 'measured');"
            "PRAGMA user_version=3");
  }
  const auto row = [](double value, const char* hash) {
    return QualityRow{.model = "m", .recipe = "kivi", .quality_model = "w", .metric = "perplexity", .value = value, .retained = 0.8, .context = 1024, .protocol = "a",
                      .n = 256, .ci95_low = {}, .ci95_high = {}, .grade = "M", .source = "s", .dtype = "bf16", .seed = 0, .text_hash = hash, .scored = 256, .windows = 1};
  };
  store_quality(path, std::vector{row(4, "one"), row(5, "two")});
  store_quality(path, std::vector{row(6, "two")});
  QualityRow trained = row(7, "two");
  trained.trained_hash = "a file";
  QualityRow task = row(0.5, "two");
  task.metric = "passkey:after";
  task.trials = 20;
  QualityRow more = task;
  more.trials = 200;
  store_quality(path, std::vector{trained, task, more, more});
  Database db(path, Database::Mode::read);
  CHECK(db.integer("PRAGMA user_version") == kSchemaVersion);
  CHECK(db.integer("SELECT count(*) FROM quality") == 6);
  CHECK(db.integer("SELECT count(*) FROM quality WHERE trained_hash = 'a file' AND value = 7.0") == 1);
  CHECK(db.integer("SELECT sum(trials) FROM quality") == 220);
  CHECK(db.integer("SELECT count(*) FROM quality WHERE id = 7 AND value = 3.5 AND retained = 0.9 AND text_hash = '' AND dtype = '' AND ci95_low = 3.4") == 1);
  CHECK(db.integer("SELECT count(*) FROM quality WHERE text_hash = 'two' AND value = 6.0 AND windows = 1 AND trials = 0 AND trained_hash = ''") == 1);
}

TEST_CASE("twin rows that came from outside are made one when the index is built", "[unit]") {
  const TempFolder folder;
  const auto path = folder / "a.sqlite";
  run_sweep(parse_spec(small_spec(), "s"), path);
  const std::string before = dump_of(path);
  Database db(path, Database::Mode::write);
  std::string columns = "key, configuration";
  for (const std::string& c : figure_columns()) columns += ", " + c;
  db.exec("DROP INDEX predictions_key; INSERT INTO predictions(" + columns + ") SELECT " + columns + " FROM predictions");
  build_index(db);
  REQUIRE(db.integer("SELECT count(*) FROM sqlite_schema WHERE name = 'predictions_key'") == 1);
  std::ostringstream out;
  write_dump(db, out);
  REQUIRE(out.str() == before);
}

// A sweep that is killed at random moments and started again holds the same rows as one that was left alone.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <random>
#include <thread>

#include "sweeps/runner.hpp"
#include "tests/catch.hpp"
#include "tests/unit/sweeps/sweep_support.hpp"

using namespace kvatlas::sweep;
using namespace kvatlas::sweep::testing;

namespace {

struct Kills {
  int hit = 0;
  int part_written = 0;  // kills that left some but not all rows
};

std::int64_t rows_in(const std::filesystem::path& path) {
  try {
    std::optional<Database> db;
    open_for_reading(db, path);
    return db->integer("SELECT count(*) FROM predictions");
  } catch (const kvatlas::IoError&) {  // killed before the tables were there
    return 0;
  }
}

/// Kills sweeps into `path` until `kills` were hit; a sweep that ended first starts the file anew.
/// Moments are drawn up to `longest`, the time of an undisturbed run on this machine and build.
Kills kill_at_random(const Spec& spec, const std::filesystem::path& path, int kills, unsigned seed, std::chrono::microseconds longest) {
  std::mt19937 random(seed);
  Kills count;
  int& hit = count.hit;
  for (int attempt = 0; attempt < kills * 20 && hit < kills; ++attempt) {
    const pid_t child = fork();
    if (child == 0) {
      try {
        run_sweep(spec, path, {.jobs = 2, .shard = {}, .progress = {}, .commit_points = 500});
      } catch (...) {
        _exit(9);
      }
      _exit(0);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(std::uniform_int_distribution<std::int64_t>(500, std::max<std::int64_t>(60'000, longest.count()))(random)));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) {
      ++hit;
      if (rows_in(path) > 0) ++count.part_written;
      continue;
    }
    REQUIRE(WEXITSTATUS(status) == 0);
    for (const char* suffix : {"", "-wal"}) std::filesystem::remove(path.string() + suffix);
  }
  return count;
}

}  // namespace

TEST_CASE("a sweep killed at random moments holds the rows of an undisturbed one", "[property]") {
  const TempFolder folder;
  const Spec spec = parse_spec(small_spec("\"1K..128K+1K\"", "\"1..24\""), "s");
  const auto start = std::chrono::steady_clock::now();
  run_sweep(spec, folder / "whole.sqlite");
  const auto longest = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start);
  const std::string whole = dump_of(folder / "whole.sqlite");
  const unsigned seed = 20260;
  CAPTURE(seed);
  const Kills kills = kill_at_random(spec, folder / "killed.sqlite", 20, seed, longest);
  REQUIRE(kills.hit == 20);
  REQUIRE(kills.part_written >= 5);
  const SweepReport rest = run_sweep(spec, folder / "killed.sqlite");
  CAPTURE(rest.stored, rest.skipped);
  REQUIRE(rest.points == 8 * 128 * 24);
  REQUIRE(dump_of(folder / "killed.sqlite") == whole);
  Database db(folder / "killed.sqlite", Database::Mode::read);
  REQUIRE(db.integer("SELECT count(*) FROM sqlite_schema WHERE name = 'predictions_key'") == 1);
  REQUIRE(db.integer("SELECT count(*) FROM runs WHERE state = 'complete'") == 1);
  REQUIRE(db.integer("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check != 'ok'") == 0);
}

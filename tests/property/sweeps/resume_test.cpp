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

/// Kills sweeps into `path` until `kills` were hit; a sweep that ended first starts the file anew. Returns the kills.
int kill_at_random(const Spec& spec, const std::filesystem::path& path, int kills, unsigned seed) {
  std::mt19937 random(seed);
  int hit = 0;
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
    std::this_thread::sleep_for(std::chrono::microseconds(std::uniform_int_distribution<int>(500, 60'000)(random)));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) {
      ++hit;
      continue;
    }
    REQUIRE(WEXITSTATUS(status) == 0);
    for (const char* suffix : {"", "-wal"}) std::filesystem::remove(path.string() + suffix);
  }
  return hit;
}

}  // namespace

TEST_CASE("a sweep killed at random moments holds the rows of an undisturbed one", "[property]") {
  const TempFolder folder;
  const Spec spec = parse_spec(small_spec("\"1K..128K+1K\"", "\"1..24\""), "s");
  run_sweep(spec, folder / "whole.sqlite");
  const std::string whole = dump_of(folder / "whole.sqlite");
  const unsigned seed = 20260;
  CAPTURE(seed);
  REQUIRE(kill_at_random(spec, folder / "killed.sqlite", 8, seed) == 8);
  const SweepReport rest = run_sweep(spec, folder / "killed.sqlite");
  CAPTURE(rest.stored, rest.skipped);
  REQUIRE(rest.points == 8 * 128 * 24);
  REQUIRE(dump_of(folder / "killed.sqlite") == whole);
  Database db(folder / "killed.sqlite", Database::Mode::read);
  REQUIRE(db.integer("SELECT count(*) FROM sqlite_schema WHERE name = 'predictions_key'") == 1);
  REQUIRE(db.integer("SELECT count(*) FROM runs WHERE state = 'complete'") == 1);
  REQUIRE(db.integer("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check != 'ok'") == 0);
}

// The store of a sweep: one SQLite file, written by one process, resumable after any kill.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "simulator/evaluator.hpp"
#include "sweeps/configuration.hpp"
#include "sweeps/database.hpp"
#include "sweeps/hash128.hpp"

namespace kvatlas::sweep {

/// One decode step of one configuration, with what sets it in relation to a plain cache. NaN is unknown.
struct Point {
  Key key{};
  Tokens context{0};
  int batch = 0;
  double speedup = 0;          // step time of `full` over this one's, same context and batch; NaN where `full` does not fit
  double throughput_gain = 0;  // tokens/s over those of `full` at its own largest batch; NaN where `full` does not fit at all
  double size_factor = 1;
  sim::StepFigures figures{};
};

/// One workload served by one configuration.
struct WorkloadPoint {
  std::size_t workload = 0;    // place in the spec
  Key key{};
  double speedup = 0, speedup_decode_only = 0;  // NaN is unknown
  sim::WorkloadFigures figures{};
};

struct InfeasiblePoint {
  Tokens context{0};           // 0: the whole configuration
  std::string sentence;
};

/// What one worker hands to the writer. A large configuration comes in several blocks; the last one closes it.
struct Block {
  std::size_t configuration = 0;  // place in the work list
  std::vector<Point> points{};
  std::vector<WorkloadPoint> workloads{};
  std::vector<InfeasiblePoint> infeasible{};
  std::int64_t skipped = 0;       // points that the store had
  bool last = false;
  std::int64_t total_points = 0, total_infeasible = 0;  // of the configuration; set in the last block
};

/// A stored point that a resumed run evaluates again: other code must not continue a store.
struct Sample {
  Tokens context{0};
  int batch = 0;
  double step_s = 0, cache_bytes = 0;
};

class Store {
 public:
  /// Opens for writing, makes the file when there is none, migrates an older one.
  /// throws IoError with one sentence: no store, newer, damaged, read-only, in use
  explicit Store(const std::filesystem::path& path);

  struct Run {
    std::int64_t id = 0;
    std::vector<std::int64_t> configuration_ids;  // by place in the work list
    std::vector<std::int64_t> workload_ids;       // by place in the spec
    std::vector<char> done;                       // configurations that an earlier part of this run completed
    std::int64_t done_points = 0, done_infeasible = 0;
    KeySet present;                               // keys of every point in the file
    std::map<std::int64_t, Sample> samples;       // one stored point of each configuration, by its id
  };
  /// Starts the run of a spec, or continues it.
  Run begin(const Spec& spec, const WorkList& work, const Shard& shard);

  void add(const Run& run, const Block& block);   // inside an open batch
  void open_batch();
  void commit_batch();
  /// Completes the run: marks its state and, for a run that reached its end, builds the unique index.
  void finish(const Run& run, bool complete);

  Database& database() { return db_; }

 private:
  Database db_;
  bool index_dropped_ = false;
  std::optional<Transaction> batch_;
  std::optional<Statement> insert_point_, insert_workload_, insert_infeasible_, insert_progress_;
};

/// Builds the unique index over keys where it is missing; equal rows that two interrupted writers left are made one.
void build_index(Database& db);

/// Opens a store for reading, also one of an older version. throws IoError as Store does
/// oldest   the first version with the tables and columns that are asked for
void open_for_reading(std::optional<Database>& db, const std::filesystem::path& path, int oldest = 1);

/// Every prediction as one line of text, ordered by key, numbers in full: equal sweeps give equal dumps, whatever the
/// order in which their points were stored.
void write_dump(Database& db, std::ostream& out);

/// Columns of `predictions` that are figures (all but id, key and configuration), in table order.
std::vector<std::string> figure_columns();
/// Columns of `workload_predictions` that are figures (all but id, key, configuration and workload), in table order.
std::vector<std::string> workload_figure_columns();

}  // namespace kvatlas::sweep

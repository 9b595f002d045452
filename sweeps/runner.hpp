// Runs a sweep: workers evaluate configurations, the calling thread writes the store.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "sweeps/configuration.hpp"
#include "sweeps/spec.hpp"

namespace kvatlas::sweep {

struct Progress {
  std::int64_t configurations = 0, configurations_done = 0;
  std::int64_t stored = 0, skipped = 0, infeasible = 0;
  double seconds = 0;
  double points_per_s = 0;   // stored in this run
  double eta_s = -1;         // negative: not known yet
};

/// "  412/3015 configurations  104,210 points  231,000/s  ETA 0:12"
std::string progress_line(const Progress& progress);

struct SweepOptions {
  int jobs = 0;                                        // worker threads; 0: one a core
  Shard shard;
  const std::atomic<bool>* stop = nullptr;             // set it, from a signal handler too, to end after the current configurations
  std::function<void(const Progress&)> progress;       // called from the calling thread, a few times a second and at the end
  std::int64_t commit_points = 50'000;                 // points of one transaction, about
};

struct SweepReport {
  std::int64_t points = 0;       // points and workloads of the sweep that exist: stored + skipped; of evaluate_sweep: evaluated
  std::int64_t stored = 0;       // by this call
  std::int64_t skipped = 0;      // that the store had
  std::int64_t infeasible = 0;   // configurations that cannot be, and contexts at which nothing fits
  double seconds = 0;
  double points_per_s = 0;       // stored per second of this call; of evaluate_sweep: evaluated
  bool interrupted = false;      // stop was set before the end
  std::vector<std::string> left_out{};      // settings outside a method's range, as sentences that start with the method
  std::vector<std::string> without_plan{};  // recipes without the released plan that was asked for, as sentences
};

/// Sweeps into a store. The rows do not depend on `jobs`, nor on how often the run was ended and started again.
/// throws IoError for the store, InvalidArgument for the options
SweepReport run_sweep(const Spec& spec, const std::filesystem::path& store, const SweepOptions& options = {});

/// Evaluates the same points and stores nothing: what the predictor alone takes. `checksum` of all keys and step times,
/// equal for any number of jobs.
struct EvaluateReport {
  SweepReport report;
  std::uint64_t checksum = 0;
};
EvaluateReport evaluate_sweep(const Spec& spec, const SweepOptions& options = {});

}  // namespace kvatlas::sweep

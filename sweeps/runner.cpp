#include "sweeps/runner.hpp"

#include <algorithm>
#include <bit>
#include <chrono>
#include <deque>
#include <exception>
#include <fmt/core.h>
#include <mutex>
#include <thread>

#include "core/errors.hpp"
#include "sweeps/chunk.hpp"
#include "sweeps/queue.hpp"
#include "sweeps/store.hpp"

namespace kvatlas::sweep {

namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

int workers(const SweepOptions& options) {
  if (options.jobs < 0 || options.jobs > 1024) throw InvalidArgument(cat("jobs is ", options.jobs, ", must be from 1 to 1024, or 0 for one a core"));
  return options.jobs > 0 ? options.jobs : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

bool stopped(const SweepOptions& options) { return options.stop != nullptr && options.stop->load(); }

/// The workers of a sweep: they take configurations in order and hand blocks to `emit`, which may be called at once
/// from all of them.
class Crew {
 public:
  Crew(const Spec& spec, const WorkList& work, const Store::Run* run, const SweepOptions& options)
      : spec_(spec), work_(work), run_(run), options_(options) {
    for (const Group& g : work.groups) baselines_.emplace_back(spec, g);
  }

  void work(const std::function<bool(Block&&)>& emit) {
    const std::function<bool(Block&&)> emit_or_end = [&](Block&& block) {
      const bool wanted = emit(std::move(block));
      if (!wanted) next_.store(work_.configurations.size());
      return wanted;
    };
    try {
      for (std::size_t i = next_.fetch_add(1); i < work_.configurations.size() && !stopped(options_); i = next_.fetch_add(1)) {
        if (run_ != nullptr && run_->done[i] != 0) continue;
        ChunkInput in{.spec = &spec_, .configuration = &work_.configurations[i], .place = i, .baseline = &baselines_[work_.configurations[i].group]};
        if (run_ != nullptr) {
          in.present = &run_->present;
          const auto sample = run_->samples.find(run_->configuration_ids[i]);
          if (sample != run_->samples.end()) in.sample = &sample->second;
        }
        evaluate_chunk(in, emit_or_end);
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      next_.store(work_.configurations.size());
    }
  }

  void rethrow() {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  const Spec& spec_;
  const WorkList& work_;
  const Store::Run* run_;
  const SweepOptions& options_;
  std::deque<Baseline> baselines_;
  std::atomic<std::size_t> next_{0};
  std::mutex mutex_;
  std::exception_ptr failure_;
};

/// Counts, and calls back at most five times a second.
class Meter {
 public:
  Meter(const SweepOptions& options, std::size_t configurations) : options_(options) { now_.configurations = static_cast<std::int64_t>(configurations); }

  void begin(const Store::Run& run) {
    now_.configurations_done = done_before_ = std::count(run.done.begin(), run.done.end(), char{1});
    now_.skipped = run.done_points;
    now_.infeasible = run.done_infeasible;
  }
  void add(const Block& block) {
    now_.stored += static_cast<std::int64_t>(block.points.size() + block.workloads.size());
    now_.skipped += block.skipped;
    now_.infeasible += static_cast<std::int64_t>(block.infeasible.size());
    if (block.last) ++now_.configurations_done;
  }
  void tell(bool last = false) {
    now_.seconds = since(start_);
    if (!options_.progress || (!last && now_.seconds - told_ < 0.2)) return;
    told_ = now_.seconds;
    now_.points_per_s = static_cast<double>(now_.stored) / std::max(now_.seconds, 1e-9);
    const auto done = static_cast<double>(now_.configurations_done - done_before_);
    const auto left = static_cast<double>(now_.configurations - now_.configurations_done);
    now_.eta_s = done > 0 ? now_.seconds / done * left : -1;
    options_.progress(now_);
  }
  SweepReport report(const Spec& spec, const WorkList& work, bool interrupted) {
    SweepReport r{.points = now_.stored + now_.skipped, .stored = now_.stored, .skipped = now_.skipped, .infeasible = now_.infeasible};
    r.seconds = since(start_);
    r.points_per_s = static_cast<double>(r.stored) / std::max(r.seconds, 1e-9);
    r.interrupted = interrupted && now_.configurations_done < now_.configurations;
    r.left_out = spec.left_out;
    r.without_plan = work.left_out;
    return r;
  }
  bool complete() const { return now_.configurations_done == now_.configurations; }

 private:
  const SweepOptions& options_;
  Progress now_;
  Clock::time_point start_ = Clock::now();
  double told_ = -1;
  std::int64_t done_before_ = 0;
};

std::string with_commas(std::int64_t n) {
  const std::string digits = cat(n);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

}  // namespace

std::string progress_line(const Progress& p) {
  std::string eta = "?";
  if (p.eta_s >= 0) {
    const auto s = static_cast<std::int64_t>(p.eta_s + 0.5);
    eta = fmt::format("{}:{:02}", s / 60, s % 60);
  }
  return cat("  ", with_commas(p.configurations_done), "/", with_commas(p.configurations), " configurations  ", with_commas(p.stored + p.skipped),
             " points  ", with_commas(static_cast<std::int64_t>(p.points_per_s)), "/s  ETA ", eta);
}

SweepReport run_sweep(const Spec& spec, const std::filesystem::path& path, const SweepOptions& options) {
  const int jobs = workers(options);
  const WorkList work = work_list(spec, options.shard);
  Meter meter(options, work.configurations.size());
  Store store(path);
  const Store::Run run = store.begin(spec, work, options.shard);
  meter.begin(run);

  Crew crew(spec, work, &run, options);
  // Blocks of small configurations are a few hundred points: the queue holds about a transaction's worth.
  BoundedQueue<Block> queue(64, jobs);
  const auto emit = [&](Block&& block) { return queue.push(std::move(block)); };
  struct Closer {  // a store that fails must not leave workers waiting for room
    BoundedQueue<Block>& queue;
    ~Closer() { queue.close(); }
  };
  {
    std::vector<std::jthread> pool;
    const Closer closer{queue};
    for (int i = 0; i < jobs; ++i)
      pool.emplace_back([&] {
        crew.work(emit);
        queue.producer_done();
      });
    std::int64_t uncommitted = 0;
    Clock::time_point opened = Clock::now();
    while (!queue.ended()) {
      if (std::optional<Block> block = queue.pop(std::chrono::milliseconds(200))) {
        store.add(run, *block);
        meter.add(*block);
        uncommitted += static_cast<std::int64_t>(block->points.size()) + 1;
      }
      if (uncommitted >= options.commit_points || (uncommitted > 0 && since(opened) > 1)) {
        store.commit_batch();
        uncommitted = 0;
        opened = Clock::now();
      }
      meter.tell();
    }
  }
  crew.rethrow();
  store.finish(run, meter.complete());
  meter.tell(true);
  return meter.report(spec, work, stopped(options));
}

EvaluateReport evaluate_sweep(const Spec& spec, const SweepOptions& options) {
  const int jobs = workers(options);
  const WorkList work = work_list(spec, options.shard);
  Meter meter(options, work.configurations.size());
  Crew crew(spec, work, nullptr, options);
  std::mutex mutex;
  EvaluateReport out;
  const auto emit = [&](Block&& block) {
    std::uint64_t sum = 0;
    for (const Point& p : block.points) sum += p.key.h1 ^ std::bit_cast<std::uint64_t>(p.figures.step_s);
    const std::lock_guard lock(mutex);
    out.checksum += sum;
    meter.add(block);
    return true;
  };
  {
    std::vector<std::jthread> pool;
    for (int i = 1; i < jobs; ++i) pool.emplace_back([&] { crew.work(emit); });
    crew.work(emit);
  }
  crew.rethrow();
  meter.tell(true);
  out.report = meter.report(spec, work, stopped(options));
  out.report.stored = 0;  // the meter counts what was evaluated
  return out;
}

}  // namespace kvatlas::sweep

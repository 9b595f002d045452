// Runs a kernel on the CPU as a GPU would: a fiber for each thread, warps whose lanes move on their own, block barriers, warp
// collectives. Checks every access and every meeting of threads, and counts the memory traffic. Knows no kernel.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "gpu/simt/fiber.hpp"
#include "gpu/simt/finding.hpp"
#include "gpu/simt/limits.hpp"
#include "gpu/simt/memory.hpp"
#include "gpu/simt/recorder.hpp"

namespace kvatlas::gpu {

struct Dim3 {
  std::int64_t x = 1, y = 1, z = 1;
};

struct Launch {
  Dim3 grid{};
  int threads = 32;                // of a block, whole warps
  std::int64_t shared_bytes = 0;   // dynamic shared memory
  const GpuLimits* gpu = nullptr;  // null: only what every GPU allows
  bool exited_skip_barriers = false;        // barriers wait for the threads that still run, as hardware does
  std::optional<std::int64_t> l2_bytes{};   // models an L2 of this size
};

/// The order in which lanes and blocks run. Results of a correct kernel do not depend on it.
enum class LaneOrder : std::uint8_t { ascending, descending, warp_by_warp, one_ahead, random };
enum class BlockOrder : std::uint8_t { ascending, descending, random };
struct Schedule {
  LaneOrder lanes = LaneOrder::ascending;
  BlockOrder blocks = BlockOrder::ascending;
  std::uint64_t seed = 0;
  bool copy_at_issue = false;  // asynchronous copies read their source at once, not when they are waited for
  std::string name() const;
};
/// Ascending, descending, warp by warp, one warp far ahead, random with `random_seeds` seeds; blocks forward, backward and shuffled.
std::vector<Schedule> all_schedules(int random_seeds);

struct LaunchReport {
  bool completed = false;
  std::vector<Finding> findings;
  LaunchCounts counts;
  std::int64_t shared_used = 0;  // bytes of dynamic shared memory that threads asked for

  bool clean() const { return completed && findings.empty(); }
  bool has(FindingKind kind) const;
};

enum class WarpOp : std::uint8_t { sync, shuffle_index, shuffle_xor, shuffle_up, shuffle_down, ballot, any, all, match_any, mma };
const char* name_of(WarpOp op);

/// What a lane brings to a collective; `in` and `out` point into its stack.
struct Deposit {
  WarpOp op = WarpOp::sync;
  Site site{};
  std::uint32_t mask = 0;
  int width = 32;     // of shuffles: lanes of a segment; of mma: the sign pair
  int argument = 0;   // of shuffles: lane, distance; of votes: the predicate
  const void* in = nullptr;
  void* out = nullptr;
  int bytes = 0;
};

/// Thrown through a thread whose finding stops the launch. Not an error of the caller.
struct KernelFault {};

class Executor {
 public:
  using Thread = void (*)(void* kernel, Executor& executor, int thread);

  explicit Executor(SwitchKind kind = best_switch()) : fibers_(kind) {}

  /// Runs all blocks. What goes wrong inside the kernel is in the report; a launch that no GPU accepts is one too.
  LaunchReport run(const Launch& launch, const Schedule& schedule, Thread thread, void* kernel);

  // What contexts call, on the fiber of `thread`.
  const Launch& launch() const { return launch_; }
  const Dim3& block() const { return block_; }
  /// Checks, counts and notes an access; returns the host's bytes. `stored` are the bytes that a store is about to write.
  std::byte* global(int thread, Allocation* allocation, std::int64_t offset, int bytes, MemoryOp op, const Site& site, const void* stored = nullptr);
  std::byte* shared(int thread, std::int64_t offset, int bytes, MemoryOp op, const Site& site, const void* stored = nullptr);
  std::int64_t take_shared(int thread, std::int64_t bytes, const Site& site);
  void barrier(int thread, const Site& site);
  void collective(int thread, const Deposit& deposit);
  void copy(int thread, std::int64_t to, Allocation* from, std::int64_t offset, int bytes, const Site& site);
  void copy_commit(int thread);
  void copy_wait(int thread, int groups_left);
  [[noreturn]] void fault(int thread, FindingKind kind, const Site& site, const std::string& text);
  /// Random schedules let another thread run now and then between two accesses.
  void maybe_yield(int thread);

 private:
  enum class Wait : std::uint8_t { ready, barrier, collective, done };
  struct Copy {
    Allocation* from;
    std::int64_t offset, to;
    int bytes;
    Site site;
    std::array<std::byte, 16> data;
    std::array<std::uint8_t, 16> written;
  };
  struct ThreadState {
    Wait wait = Wait::ready;
    Site site;
    Deposit deposit;
    std::int64_t shared_taken = 0;
    std::vector<Copy> open;                 // not committed
    std::vector<std::vector<Copy>> groups;  // committed, oldest first
  };
  struct WarpState {
    std::uint32_t waiting = 0;  // at a collective
    std::uint32_t exited = 0;
    std::uint32_t syncs = 0;
    std::array<Knowledge, 32> knows{};
  };

  bool check_launch();
  void run_block(const Dim3& at, std::int32_t number);
  bool sweep();
  bool run_warp(int warp, bool backwards);
  bool resume(int thread);
  void on_exit(int thread);
  bool release_barrier();
  void try_resolve(int thread);
  void resolve(int warp, std::uint32_t mask);
  void resolve_sync(WarpState& warp, std::uint32_t mask);
  void resolve_mma(int warp);
  void dead_lock();
  void flush(int warp);
  void note_race(int thread, Shadow& shadow, std::int64_t offset, int bytes, Touch touch, int site, const Site& at, const std::string& memory, bool same_value);
  void report(FindingKind kind, const Site& site, const Site& other, const std::string& text);
  std::string who(int thread) const;
  int warps() const { return launch_.threads / 32; }
  std::uint64_t draw();
  ThreadState& state(int thread) { return threads_[static_cast<std::size_t>(thread)]; }
  const ThreadState& state(int thread) const { return threads_[static_cast<std::size_t>(thread)]; }
  static void thread_main(void* self, int thread);

  FiberPool fibers_;
  Launch launch_;
  Schedule schedule_;
  Thread thread_ = nullptr;
  void* kernel_ = nullptr;
  Dim3 block_;
  std::int32_t block_number_ = 0;
  std::uint32_t epoch_ = 0;
  std::uint64_t random_ = 0;
  std::uint64_t launch_number_ = 0;  // of this process: tells launches on one memory apart
  bool stopped_ = false;
  int live_ = 0, at_barrier_ = 0;
  std::vector<ThreadState> threads_;
  std::vector<WarpState> warp_states_;
  std::vector<int> order_;
  std::vector<std::byte> shared_data_;
  std::vector<std::uint8_t> shared_written_;
  std::optional<Shadow> shared_shadow_;
  Recorder recorder_;
  std::vector<Recorder::NonUniform> non_uniform_;
  LaunchReport report_;
};

}  // namespace kvatlas::gpu

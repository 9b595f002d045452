// Fibers of the executor: one per CUDA thread of the block being run, switched by a few instructions of our own (x86-64,
// aarch64) or by ucontext elsewhere. All of them live on the OS thread that made the pool.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvatlas::gpu {

enum class SwitchKind : std::uint8_t { own, ucontext };
/// `own` where this build has it.
SwitchKind best_switch();

class FiberPool {
 public:
  using Entry = void (*)(void* argument, int fiber);

  explicit FiberPool(SwitchKind kind = best_switch());
  ~FiberPool();
  FiberPool(const FiberPool&) = delete;
  FiberPool& operator=(const FiberPool&) = delete;

  /// Makes fibers 0..count-1 ready to run `entry` from its beginning. What an earlier run left unfinished is dropped
  /// without running destructors.
  void start(int count, Entry entry, void* argument);
  /// Runs a fiber until it yields or its entry returns.
  void resume(int fiber);
  /// Back to the caller of resume.
  void yield();
  bool finished(int fiber) const;
  /// Whether the fiber ever touched the last bytes of its stack.
  bool overflowed(int fiber) const;

  /// Stack of one fiber, without the guard page below it.
  static std::size_t stack_bytes();

 private:
  friend struct FiberMain;
  struct State;
  void switch_in(int fiber);
  std::unique_ptr<State> state_;
};

}  // namespace kvatlas::gpu

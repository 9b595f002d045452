// The context of a kernel on the CPU: the operations of DeviceCtx, checked and counted by the executor.
#pragma once

#include <cstring>
#include <type_traits>

#include "core/formats/fp16.hpp"
#include "gpu/simt/executor.hpp"
#include "gpu/simt/mma.hpp"

namespace kvatlas::gpu {

class SimCtx {
 public:
  template <class T>
  using Global = GlobalPtr<T>;
  template <class T>
  using Shared = SharedPtr<T>;

  SimCtx(Executor& executor, int thread) : executor_(executor), thread_(thread) {}

  int thread() const { return thread_; }
  int threads() const { return executor_.launch().threads; }
  int lane() const { return thread_ % 32; }
  int warp() const { return thread_ / 32; }
  int warps() const { return threads() / 32; }
  std::int64_t block_x() const { return executor_.block().x; }
  std::int64_t block_y() const { return executor_.block().y; }
  std::int64_t block_z() const { return executor_.block().z; }
  std::int64_t grid_x() const { return executor_.launch().grid.x; }

  /// Element i of p; T has 1, 2, 4, 8 or 16 bytes and p is aligned to them.
  template <class T>
  std::remove_const_t<T> ld(GlobalPtr<T> p, std::int64_t i = 0, Site site = Site::here()) {
    return read<std::remove_const_t<T>>(executor_.global(thread_, p.allocation(), (p + i).offset(), width<T>(), MemoryOp::global_load, site));
  }
  /// The same for data that no thread of the launch writes.
  template <class T>
  std::remove_const_t<T> ld_nc(GlobalPtr<T> p, std::int64_t i = 0, Site site = Site::here()) {
    return ld(p, i, site);
  }
  template <class T>
  void st(GlobalPtr<T> p, std::int64_t i, const std::type_identity_t<T>& value, Site site = Site::here()) {
    write(executor_.global(thread_, p.allocation(), (p + i).offset(), width<T>(), MemoryOp::global_store, site, &value), value);
  }
  template <class U, class T>
  static GlobalPtr<U> global_as(GlobalPtr<T> p) {
    return {p.allocation(), p.offset()};
  }

  /// `count` elements of dynamic shared memory, 16-byte aligned; all threads of a block ask in the same order.
  template <class T>
  SharedPtr<T> shared(std::int64_t count, Site site = Site::here()) {
    return SharedPtr<T>(executor_.take_shared(thread_, count * static_cast<std::int64_t>(sizeof(T)), site));
  }
  template <class T>
  T ld_shared(SharedPtr<T> p, std::int64_t i = 0, Site site = Site::here()) {
    return read<T>(executor_.shared(thread_, (p + i).offset(), width<T>(), MemoryOp::shared_load, site));
  }
  template <class T>
  void st_shared(SharedPtr<T> p, std::int64_t i, const std::type_identity_t<T>& value, Site site = Site::here()) {
    write(executor_.shared(thread_, (p + i).offset(), width<T>(), MemoryOp::shared_store, site, &value), value);
  }
  template <class U, class T>
  static SharedPtr<U> shared_as(SharedPtr<T> p) {
    return SharedPtr<U>(p.offset());
  }

  void sync_block(Site site = Site::here()) { executor_.barrier(thread_, site); }
  void sync_warp(std::uint32_t mask = kFullMask, Site site = Site::here()) { meet<int>(WarpOp::sync, mask, 0, 32, 0, site); }

  template <class T>
  T shfl(std::uint32_t mask, T value, int source, int width = 32, Site site = Site::here()) {
    return meet<T>(WarpOp::shuffle_index, mask, value, width, source, site);
  }
  template <class T>
  T shfl_xor(std::uint32_t mask, T value, int distance, int width = 32, Site site = Site::here()) {
    return meet<T>(WarpOp::shuffle_xor, mask, value, width, distance, site);
  }
  template <class T>
  T shfl_up(std::uint32_t mask, T value, int distance, int width = 32, Site site = Site::here()) {
    return meet<T>(WarpOp::shuffle_up, mask, value, width, distance, site);
  }
  template <class T>
  T shfl_down(std::uint32_t mask, T value, int distance, int width = 32, Site site = Site::here()) {
    return meet<T>(WarpOp::shuffle_down, mask, value, width, distance, site);
  }
  std::uint32_t ballot(std::uint32_t mask, bool predicate, Site site = Site::here()) { return vote(WarpOp::ballot, mask, predicate, site); }
  bool any(std::uint32_t mask, bool predicate, Site site = Site::here()) { return vote(WarpOp::any, mask, predicate, site) != 0; }
  bool all(std::uint32_t mask, bool predicate, Site site = Site::here()) { return vote(WarpOp::all, mask, predicate, site) != 0; }
  /// Lanes of the mask whose value has the same bits.
  template <class T>
  std::uint32_t match_any(std::uint32_t mask, T value, Site site = Site::here()) {
    std::uint32_t out = 0;
    executor_.collective(thread_, {.op = WarpOp::match_any, .site = site, .mask = mask, .in = &value, .out = &out, .bytes = width<T>()});
    return out;
  }

  /// Atomics on 32- and 64-bit integers; each returns what was there before.
  template <class P, class T>
  T atomic_add(P p, std::int64_t i, T value, Site site = Site::here()) {
    return atomic<T>(p, i, site, [value](T old) { return static_cast<T>(static_cast<std::make_unsigned_t<T>>(old) + static_cast<std::make_unsigned_t<T>>(value)); });
  }
  template <class P, class T>
  T atomic_max(P p, std::int64_t i, T value, Site site = Site::here()) {
    return atomic<T>(p, i, site, [value](T old) { return old < value ? value : old; });
  }
  template <class P, class T>
  T atomic_min(P p, std::int64_t i, T value, Site site = Site::here()) {
    return atomic<T>(p, i, site, [value](T old) { return value < old ? value : old; });
  }
  template <class P, class T>
  T atomic_cas(P p, std::int64_t i, T expected, T value, Site site = Site::here()) {
    return atomic<T>(p, i, site, [expected, value](T old) { return old == expected ? value : old; });
  }

  /// 16 bytes from global to shared memory, visible to this thread after async_wait and to others after a barrier behind it.
  template <class T, class S>
  void async_copy16(SharedPtr<T> to, GlobalPtr<S> from, Site site = Site::here()) {
    executor_.copy(thread_, to.offset(), from.allocation(), from.offset(), 16, site);
  }
  void async_commit() { executor_.copy_commit(thread_); }
  /// Waits until at most GroupsLeft of this thread's newest groups are pending.
  template <int GroupsLeft>
  void async_wait() {
    executor_.copy_wait(thread_, GroupsLeft);
  }

  /// d = A B + c for the warp's 16 x 32 and 32 x 8 integer matrices, laid out as gpu/simt/mma.hpp says.
  template <bool SignedA, bool SignedB>
  void mma(std::int32_t (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const std::int32_t (&c)[4], Site site = Site::here()) {
    const mma::Operands in{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
    executor_.collective(thread_, {.op = WarpOp::mma, .site = site, .mask = kFullMask, .argument = (SignedA ? 1 : 0) | (SignedB ? 2 : 0), .in = &in, .out = d, .bytes = 16});
  }

  /// Conversions that a GPU has an instruction for; nearest even.
  static float half_to_float(std::uint16_t bits) { return num::decode_fp16(bits); }
  static std::uint16_t float_to_half(float x) { return num::encode_fp16(x); }

  [[noreturn]] void trap(Site site = Site::here()) { executor_.fault(thread_, FindingKind::trap, site, "called trap"); }

 private:
  template <class T>
  static constexpr int width() {
    static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16),
                  "one access of a lane moves 1, 2, 4, 8 or 16 bytes");
    return static_cast<int>(sizeof(T));
  }
  template <class T>
  static T read(const std::byte* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  template <class T>
  static void write(std::byte* to, const T& value) {
    std::memcpy(to, &value, sizeof value);
  }
  template <class T>
  T meet(WarpOp op, std::uint32_t mask, T value, int segment, int argument, const Site& site) {
    T out = value;
    executor_.collective(thread_, {.op = op, .site = site, .mask = mask, .width = segment, .argument = argument, .in = &value, .out = &out, .bytes = width<T>()});
    return out;
  }
  std::uint32_t vote(WarpOp op, std::uint32_t mask, bool predicate, const Site& site) {
    std::uint32_t out = 0;
    executor_.collective(thread_, {.op = op, .site = site, .mask = mask, .argument = predicate ? 1 : 0, .out = &out, .bytes = 4});
    return out;
  }
  template <class T, class Update>
  T atomic(GlobalPtr<T> p, std::int64_t i, const Site& site, Update update) {
    return exchange<T>(executor_.global(thread_, p.allocation(), (p + i).offset(), width<T>(), MemoryOp::global_atomic, site), update);
  }
  template <class T, class Update>
  T atomic(SharedPtr<T> p, std::int64_t i, const Site& site, Update update) {
    return exchange<T>(executor_.shared(thread_, (p + i).offset(), width<T>(), MemoryOp::shared_atomic, site), update);
  }
  template <class T, class Update>
  static T exchange(std::byte* at, Update update) {
    const T old = read<T>(at);
    write<T>(at, update(old));
    return old;
  }

  Executor& executor_;
  int thread_;
};

/// Runs `kernel(SimCtx&)` for every thread of the launch.
template <class Kernel>
LaunchReport simulate(Executor& executor, const Launch& launch, const Schedule& schedule, Kernel&& kernel) {
  using K = std::remove_reference_t<Kernel>;
  const Executor::Thread thread = [](void* k, Executor& e, int t) {
    SimCtx context(e, t);
    (*static_cast<K*>(k))(context);
  };
  return executor.run(launch, schedule, thread, const_cast<std::remove_const_t<K>*>(&kernel));
}

}  // namespace kvatlas::gpu

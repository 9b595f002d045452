#include "gpu/simt/fiber.hpp"

#include <cstring>
#include <vector>

#include "tests/catch.hpp"

using namespace kvatlas::gpu;

namespace {
struct Work {
  FiberPool* pool;
  std::vector<int> trace;
  std::vector<double> sums = std::vector<double>(4, 0.0);
};

/// Doubles live across yields, so that saved registers and stack alignment matter.
void count_to_three(void* argument, int fiber) {
  auto& work = *static_cast<Work*>(argument);
  alignas(32) volatile double local[8] = {};
  double sum = fiber;
  for (int i = 0; i < 3; ++i) {
    local[i] = sum;
    work.trace.push_back(10 * fiber + i);
    work.pool->yield();
    sum = sum * 2 + local[i];
  }
  work.sums[static_cast<std::size_t>(fiber)] = sum;
  REQUIRE(reinterpret_cast<std::uintptr_t>(&local) % 32 == 0);
}

void throw_and_catch(void* argument, int) {
  try {
    static_cast<FiberPool*>(argument)->yield();
    throw 7;
  } catch (int) {
    static_cast<FiberPool*>(argument)->yield();
  }
}

void find_stack(void* argument, int) {
  *static_cast<std::byte**>(argument) = static_cast<std::byte*>(__builtin_frame_address(0));
}
}  // namespace

TEST_CASE("fibers keep their registers and stacks across switches, whichever way they are switched", "[unit]") {
  const SwitchKind kind = GENERATE(best_switch(), SwitchKind::ucontext);
  FiberPool pool(kind);
  Work work{.pool = &pool, .trace = {}};
  pool.start(4, &count_to_three, &work);
  for (int round = 0; round < 4; ++round)
    for (int f = 0; f < 4; ++f) {
      REQUIRE_FALSE(pool.finished(f));
      pool.resume(f);
    }
  for (int f = 0; f < 4; ++f) {
    REQUIRE(pool.finished(f));
    REQUIRE_FALSE(pool.overflowed(f));
    REQUIRE(work.sums[static_cast<std::size_t>(f)] == 27.0 * f);
  }
  REQUIRE(work.trace == std::vector<int>{0, 10, 20, 30, 1, 11, 21, 31, 2, 12, 22, 32});
}

TEST_CASE("exceptions may be thrown and caught inside a fiber", "[unit]") {
  FiberPool pool;
  pool.start(1, &throw_and_catch, &pool);
  pool.resume(0);
  pool.resume(0);
  REQUIRE_FALSE(pool.finished(0));
  pool.resume(0);
  REQUIRE(pool.finished(0));
}

TEST_CASE("a pool starts again where fibers were left unfinished, and grows", "[unit]") {
  FiberPool pool;
  Work work{.pool = &pool, .trace = {}};
  pool.start(2, &count_to_three, &work);
  pool.resume(1);
  pool.start(4, &count_to_three, &work);
  REQUIRE_FALSE(pool.finished(3));
  for (int i = 0; i < 4; ++i) pool.resume(3);
  REQUIRE(pool.finished(3));
}

TEST_CASE("a write to the end of a fiber's stack is seen", "[unit]") {
  FiberPool pool;
  std::byte* inside = nullptr;
  pool.start(1, &find_stack, &inside);
  pool.resume(0);
  REQUIRE_FALSE(pool.overflowed(0));
  const auto page_end = (reinterpret_cast<std::uintptr_t>(inside) + 4095) / 4096 * 4096;
  auto* bottom = reinterpret_cast<std::byte*>(page_end) - FiberPool::stack_bytes();
  std::memset(bottom, 0, 8);
  REQUIRE(pool.overflowed(0));
}

#include "gpu/simt/executor.hpp"

#include <numeric>
#include <stdexcept>

#include "tests/unit/gpu/simt/run.hpp"

using namespace kvatlas;
using namespace kvatlas::gpu;

namespace {

/// A block sum through shared memory and warp shuffles; every schedule must give the same total.
struct BlockSum {
  GlobalPtr<const int> x;
  GlobalPtr<int> out;
  void operator()(SimCtx& c) const {
    auto partial = c.shared<int>(c.warps());
    int sum = c.ld(x, c.block_x() * c.threads() + c.thread());
    for (int d = 16; d > 0; d /= 2) sum += c.shfl_xor(kFullMask, sum, d);
    if (c.lane() == 0) c.st_shared(partial, c.warp(), sum);
    c.sync_block();
    if (c.warp() == 0) {
      int total = c.lane() < c.warps() ? c.ld_shared(partial, c.lane()) : 0;
      for (int d = 16; d > 0; d /= 2) total += c.shfl_xor(kFullMask, total, d);
      if (c.lane() == 0) c.st(out, c.block_x(), total);
    }
  }
};

template <class Kernel>
std::vector<FindingKind> found(int threads, Kernel&& kernel, std::int64_t shared = 1024) {
  return kinds(run({.threads = threads, .shared_bytes = shared}, kernel));
}

}  // namespace

TEST_CASE("a block sum is the same and clean under every schedule", "[unit]") {
  for (const Schedule& s : all_schedules(8)) {
    CAPTURE(s.name());
    DeviceMemory memory;
    std::vector<int> x(3 * 128);
    std::iota(x.begin(), x.end(), 1);
    const BlockSum kernel{memory.upload("x", x), memory.allocate<int>("out", 3)};
    const LaunchReport r = run({.grid = {3}, .threads = 128, .shared_bytes = 16}, kernel, s);
    REQUIRE(kinds(r) == kNothing);
    REQUIRE(r.completed);
    REQUIRE(memory.download(kernel.out, 3) == std::vector<int>{128 * 129 / 2, 128 * 129 / 2 + 128 * 128, 128 * 129 / 2 + 2 * 128 * 128});
    REQUIRE(r.shared_used == 16);
  }
}

TEST_CASE("the ucontext switch runs the same kernel", "[unit]") {
  DeviceMemory memory;
  std::vector<int> x(64, 2);
  BlockSum kernel{memory.upload("x", x), memory.allocate<int>("out", 1)};
  Executor executor(SwitchKind::ucontext);
  REQUIRE(simulate(executor, {.threads = 64, .shared_bytes = 16}, {}, kernel).clean());
  REQUIRE(memory.download(kernel.out, 1).front() == 128);
}

TEST_CASE("shuffles follow CUDA's rules of segments", "[unit]") {
  std::vector<int> index(32), up(32), down(32), crossed(32);
  REQUIRE(found(32, [&](SimCtx& c) {
    const auto i = static_cast<std::size_t>(c.lane());
    index[i] = c.shfl(kFullMask, c.lane(), 3, 8);
    up[i] = c.shfl_up(kFullMask, c.lane(), 2, 8);
    down[i] = c.shfl_down(kFullMask, c.lane(), 2, 8);
    crossed[i] = c.shfl_xor(kFullMask, c.lane(), 4, 8);
  }) == kNothing);
  for (int l = 0; l < 32; ++l) {
    const auto i = static_cast<std::size_t>(l);
    REQUIRE(index[i] == l / 8 * 8 + 3);
    REQUIRE(up[i] == (l % 8 >= 2 ? l - 2 : l));
    REQUIRE(down[i] == (l % 8 < 6 ? l + 2 : l));
    REQUIRE(crossed[i] == (l ^ 4));
  }
}

TEST_CASE("collectives of a part of a warp take part of it alone, even when the rest goes another way", "[unit]") {
  std::vector<int> sum(32);
  REQUIRE(found(32, [&](SimCtx& c) {
    const std::uint32_t mine = 0xFFU << (c.lane() / 8 * 8);
    int s = c.lane();
    if (c.lane() < 8) {
      for (int d = 4; d > 0; d /= 2) s += c.shfl_xor(mine, s, d);
    } else if (c.lane() < 16) {
      s = c.any(mine, c.lane() == 11) ? 100 : 200;
    } else {
      s = static_cast<int>(c.ballot(mine, c.lane() % 2 == 0) >> (c.lane() / 8 * 8) & 0xFFU);
    }
    sum[static_cast<std::size_t>(c.lane())] = s;
  }) == kNothing);
  REQUIRE(sum[3] == 28);
  REQUIRE(sum[8] == 100);
  REQUIRE(sum[31] == 0x55);
}

TEST_CASE("votes and matches see the lanes of their mask", "[unit]") {
  std::vector<std::uint32_t> equal(32);
  bool all = true, any = false;
  REQUIRE(found(32, [&](SimCtx& c) {
    equal[static_cast<std::size_t>(c.lane())] = c.match_any(kFullMask, c.lane() % 3);
    all = c.all(kFullMask, c.lane() < 31);
    any = c.any(kFullMask, c.lane() == 31);
  }) == kNothing);
  REQUIRE(equal[0] == 0x49249249U);
  REQUIRE_FALSE(all);
  REQUIRE(any);
}

TEST_CASE("atomics add, compare and swap whatever the order", "[unit]") {
  for (const Schedule& s : all_schedules(2)) {
    DeviceMemory memory;
    const std::vector<std::uint64_t> zero(3, 0);
    const auto out = memory.upload_mutable<std::uint64_t>("out", zero);
    const LaunchReport r = run({.grid = {2}, .threads = 64, .shared_bytes = 16}, [&](SimCtx& c) {
      auto local = c.shared<std::uint32_t>(1);
      if (c.thread() == 0) c.st_shared(local, 0, 0U);
      c.sync_block();
      c.atomic_add(local, 0, 1U);
      c.sync_block();
      if (c.thread() == 0) c.atomic_add(out, 0, std::uint64_t{c.ld_shared(local)});
      c.atomic_max(out, 1, static_cast<std::uint64_t>(c.thread()));
      c.atomic_cas(out, 2, std::uint64_t{0}, std::uint64_t{9});
    }, s);
    REQUIRE(kinds(r) == kNothing);
    REQUIRE(memory.download(out, 3) == std::vector<std::uint64_t>{128, 63, 9});
  }
}

TEST_CASE("accesses outside an allocation are reported, in front of it, behind it, and through null", "[unit]") {
  DeviceMemory memory;
  const auto x = memory.upload("x", std::vector<float>(8, 1.0F));
  const auto at = [&](std::int64_t i) { return found(32, [&, i](SimCtx& c) { if (c.lane() == 0) c.ld(x, i); }); };
  REQUIRE(at(7) == kNothing);
  REQUIRE(at(8) == std::vector{FindingKind::out_of_bounds});
  REQUIRE(at(-1) == std::vector{FindingKind::out_of_bounds});
  REQUIRE(found(32, [](SimCtx& c) { c.ld(GlobalPtr<const float>{}); }) == std::vector{FindingKind::out_of_bounds});
  REQUIRE(found(32, [](SimCtx& c) { c.st_shared(c.shared<int>(4), 4, 1); }, 16) == std::vector{FindingKind::out_of_bounds});
}

TEST_CASE("a vector access must be aligned to its size, in a view that is not the allocation's start, too", "[unit]") {
  DeviceMemory memory;
  const auto x = memory.upload("x", std::vector<float>(16, 1.0F));
  const auto load = [&](std::int64_t offset) {
    return found(32, [&, offset](SimCtx& c) { c.ld(SimCtx::global_as<const Vec<float, 4>>(x + offset)); });
  };
  REQUIRE(load(4) == kNothing);
  REQUIRE(load(2) == std::vector{FindingKind::misaligned});
  REQUIRE(found(32, [](SimCtx& c) { c.st_shared(SimCtx::shared_as<double>(c.shared<float>(4) + 1), 0, 1.0); }) == std::vector{FindingKind::misaligned});
}

TEST_CASE("reading bytes that nobody wrote is reported, and so is writing a const input", "[unit]") {
  DeviceMemory memory;
  const auto out = memory.allocate<int>("out", 32);
  const auto in = memory.upload("in", std::vector<int>(32, 1));
  const LaunchReport r = run({}, [&](SimCtx& c) {
    if (c.lane() > 0) c.st(out, c.lane(), 1);
    c.ld(out, c.lane());
  });
  REQUIRE(kinds(r) == std::vector{FindingKind::uninitialised_read});
  REQUIRE(r.completed);
  REQUIRE(found(32, [](SimCtx& c) { c.ld_shared(c.shared<int>(32), c.lane()); }) == std::vector{FindingKind::uninitialised_read});
  REQUIRE(found(32, [&](SimCtx& c) { c.st(SimCtx::global_as<int>(in), c.lane(), 1); }) == std::vector{FindingKind::read_only});
}

TEST_CASE("shared memory of a block starts unwritten even where an earlier block wrote", "[unit]") {
  const LaunchReport r = run({.grid = {2}, .shared_bytes = 128}, [](SimCtx& c) {
    auto s = c.shared<int>(32);
    if (c.block_x() == 0) c.st_shared(s, c.lane(), 1);
    else c.ld_shared(s, c.lane());
  });
  REQUIRE(kinds(r) == std::vector{FindingKind::uninitialised_read});
}

TEST_CASE("threads at different barriers are reported with both sites", "[unit]") {
  const LaunchReport r = run({.threads = 64}, [](SimCtx& c) {
    if (c.thread() < 32) c.sync_block();
    else c.sync_block();
  });
  REQUIRE(kinds(r) == std::vector{FindingKind::divergent_barrier});
  REQUIRE(r.findings[0].site.line != r.findings[0].other.line);
  REQUIRE_THAT(r.findings[0].text, contains_text("executor_test.cpp:"));
}

TEST_CASE("an early return before a barrier is reported unless the launch permits it", "[unit]") {
  const auto kernel = [](SimCtx& c) {
    if (c.thread() >= 40) return;
    c.sync_block();
  };
  REQUIRE(kinds(run({.threads = 64}, kernel)) == std::vector{FindingKind::exited_at_barrier});
  REQUIRE(run({.threads = 64, .exited_skip_barriers = true}, kernel).clean());
}

TEST_CASE("an early return before a full-mask collective is reported whoever comes first", "[unit]") {
  for (const LaneOrder order : {LaneOrder::ascending, LaneOrder::descending}) {
    const LaunchReport r = run({}, [](SimCtx& c) {
      if (c.lane() == 31) return;
      c.shfl_xor(kFullMask, 1, 1);
    }, {.lanes = order});
    REQUIRE(kinds(r) == std::vector{FindingKind::exited_lane});
  }
}

TEST_CASE("a collective that some lanes never reach is a dead-lock, reported with its places", "[unit]") {
  const LaunchReport r = run({.threads = 64}, [](SimCtx& c) {
    if (c.thread() < 16) c.sync_warp();
    else c.sync_block();
  });
  REQUIRE(kinds(r) == std::vector{FindingKind::dead_lock});
  REQUIRE_THAT(r.findings[0].text, contains_text("thread 0 sync_warp at executor_test.cpp"));
  REQUIRE_THAT(r.findings[0].text, contains_text("thread 16 barrier at executor_test.cpp"));
}

TEST_CASE("lanes of one mask must agree about the collective", "[unit]") {
  REQUIRE(found(32, [](SimCtx& c) {
    if (c.lane() < 16) c.sync_warp();
    else c.ballot(kFullMask, true);
  }) == std::vector{FindingKind::mismatched_collective});
  REQUIRE(found(32, [](SimCtx& c) { c.shfl_xor(kFullMask, 1, 1, c.lane() < 16 ? 32 : 16); }) == std::vector{FindingKind::mismatched_collective});
  REQUIRE(found(32, [](SimCtx& c) { c.sync_warp(c.lane() < 16 ? 0x1FFFFU : kFullMask); }) == std::vector{FindingKind::mismatched_collective});
}

TEST_CASE("a lane must be in its own mask, and shuffle from a lane in it", "[unit]") {
  REQUIRE(found(32, [](SimCtx& c) { c.sync_warp(0x7FFFFFFFU); }) == std::vector{FindingKind::bad_mask});
  REQUIRE(found(32, [](SimCtx& c) {
    if (c.lane() < 16) c.shfl(0xFFFFU, 1, 16);
  }) == std::vector{FindingKind::bad_source});
  REQUIRE(found(32, [](SimCtx& c) { c.shfl(kFullMask, 1, 0, 12); }) == std::vector{FindingKind::bad_source});
}

TEST_CASE("what no GPU launches is not run", "[unit]") {
  const auto nothing = [](SimCtx&) { FAIL("ran"); };
  const auto refused = [&](const Launch& l) {
    const LaunchReport r = run(l, nothing);
    REQUIRE_FALSE(r.completed);
    return kinds(r) == std::vector{FindingKind::launch_limit};
  };
  REQUIRE(refused({.threads = 1056}));
  REQUIRE(refused({.threads = 48}));
  REQUIRE(refused({.grid = {1, 65536}}));
  REQUIRE(refused({.grid = {0}}));
  REQUIRE(refused({.shared_bytes = (99 << 10) + 1, .gpu = &gpu_limits("sm_89")}));
  REQUIRE(refused({.shared_bytes = (163 << 10) + 1, .gpu = &gpu_limits("sm_80")}));
  REQUIRE(run({.shared_bytes = 227 << 10, .gpu = &gpu_limits("sm_90a")}, [](SimCtx&) {}).clean());
  REQUIRE(found(32, [](SimCtx& c) { c.shared<float>(5); }, 16) == std::vector{FindingKind::launch_limit});
}

TEST_CASE("a trap, an exception and a stack overrun stop the launch with their sentence", "[unit]") {
  REQUIRE(found(32, [](SimCtx& c) { c.trap(); }) == std::vector{FindingKind::trap});
  const LaunchReport r = run({}, [](SimCtx& c) {
    if (c.lane() == 5) throw std::runtime_error("no room");
  });
  REQUIRE(kinds(r) == std::vector{FindingKind::exception});
  REQUIRE_THAT(r.findings[0].text, contains_text("thread 5 threw: no room"));
}

TEST_CASE("asynchronous copies arrive when they are waited for, not before", "[unit]") {
  for (const Schedule& s : all_schedules(2)) {
    CAPTURE(s.name());
    DeviceMemory memory;
    std::vector<int> x(128);
    std::iota(x.begin(), x.end(), 0);
    const auto in = memory.upload("x", x);
    const auto out = memory.allocate<int>("out", 128);
    const LaunchReport r = run({.shared_bytes = 1024}, [&](SimCtx& c) {
      auto s0 = c.shared<int>(128);
      c.async_copy16(s0 + 4 * c.lane(), in + 4 * c.lane());
      c.async_commit();
      c.async_wait<0>();
      c.sync_block();
      for (int i = 0; i < 4; ++i) c.st(out, 32 * i + c.lane(), c.ld_shared(s0, 127 - 32 * i - c.lane()));
    }, s);
    REQUIRE(kinds(r) == kNothing);
    REQUIRE(memory.download(out, 2) == std::vector<int>{127, 126});
    REQUIRE(r.counts.reads.sectors == 16);
    REQUIRE(r.counts.reads.requests == 1);
  }
}

TEST_CASE("a missing wait, a wait for too few groups and a missing barrier behind it are reported", "[unit]") {
  DeviceMemory memory;
  const auto in = memory.upload("x", std::vector<int>(256, 3));
  const auto kernel = [&](bool wait, bool barrier) {
    return found(32, [&, wait, barrier](SimCtx& c) {
      auto s0 = c.shared<int>(256);
      for (int stage = 0; stage < 2; ++stage) {
        c.async_copy16(s0 + 128 * stage + 4 * c.lane(), in + 128 * stage + 4 * c.lane());
        c.async_commit();
      }
      if (wait) c.async_wait<0>();
      else c.async_wait<1>();
      if (barrier) c.sync_block();
      c.ld_shared(s0, 255 - c.lane());
    }, 2048);
  };
  REQUIRE(kernel(true, true) == kNothing);
  const auto unwaited = kernel(false, true);
  REQUIRE(std::ranges::count(unwaited, FindingKind::uninitialised_read) == 1);
  REQUIRE(std::ranges::count(unwaited, FindingKind::missing_wait) == 1);
  // Ascending lanes hide the missing barrier from the values; the race detector sees it.
  const auto unordered = kernel(true, false);
  REQUIRE(std::ranges::count(unordered, FindingKind::race) >= 1);
}

TEST_CASE("a copy carries unwritten bytes without complaint; using them is reported", "[unit]") {
  DeviceMemory memory;
  const auto in = memory.allocate<int>("x", 4);
  const auto kernel = [&](bool use) {
    return found(32, [&, use](SimCtx& c) {
      auto s0 = c.shared<int>(4);
      if (c.lane() == 0) c.async_copy16(s0, in);
      c.async_commit();
      c.async_wait<0>();
      if (use && c.lane() == 0) c.ld_shared(s0);
    });
  };
  REQUIRE(kernel(false) == kNothing);
  REQUIRE(kernel(true) == std::vector{FindingKind::uninitialised_read});
}

TEST_CASE("overwriting the source of a pending copy shows in one of two schedules", "[unit]") {
  const auto result = [](bool at_issue) {
    DeviceMemory memory;
    const auto x = memory.upload_mutable<int>("x", std::vector<int>{1, 1, 1, 1});
    int seen = 0;
    run({.shared_bytes = 16}, [&](SimCtx& c) {
      auto s0 = c.shared<int>(4);
      if (c.lane() != 0) return;
      c.async_copy16(s0, x);
      c.async_commit();
      c.st(x, 0, 2);
      c.async_wait<0>();
      seen = c.ld_shared(s0);
    }, {.copy_at_issue = at_issue});
    return seen;
  };
  REQUIRE(result(true) != result(false));
}

#include "gpu/simt/races.hpp"

#include "tests/unit/gpu/simt/run.hpp"

using namespace kvatlas::gpu;

namespace {

template <class Kernel>
bool races(int threads, Kernel&& kernel, Dim3 grid = {}) {
  bool all = true, any = false;
  for (const Schedule& s : all_schedules(2)) {
    const LaunchReport r = run({.grid = grid, .threads = threads, .shared_bytes = 1024}, kernel, s);
    const bool found = r.has(FindingKind::race);
    all = all && found;
    any = any || found;
  }
  REQUIRE(all == any);  // a race is one under every order
  return any;
}

}  // namespace

TEST_CASE("a missing block barrier is a race between warps, a present one is not", "[unit]") {
  const auto kernel = [](bool barrier) {
    return [barrier](SimCtx& c) {
      auto s = c.shared<int>(64);
      c.st_shared(s, c.thread(), c.thread());
      if (barrier) c.sync_block();
      c.ld_shared(s, 63 - c.thread());
    };
  };
  REQUIRE(races(64, kernel(false)));
  REQUIRE_FALSE(races(64, kernel(true)));
}

TEST_CASE("a barrier is needed before a buffer is filled again", "[unit]") {
  const auto kernel = [](bool barrier) {
    return [barrier](SimCtx& c) {
      auto s = c.shared<int>(64);
      for (int round = 0; round < 3; ++round) {
        c.st_shared(s, c.thread(), round);
        c.sync_block();
        c.ld_shared(s, (c.thread() + 33) % 64);
        if (barrier) c.sync_block();
      }
    };
  };
  REQUIRE(races(64, kernel(false)));
  REQUIRE_FALSE(races(64, kernel(true)));
}

TEST_CASE("neighbours of a warp need sync_warp; a shuffle orders nothing", "[unit]") {
  const auto kernel = [](int how) {
    return [how](SimCtx& c) {
      auto s = c.shared<int>(32);
      c.st_shared(s, c.lane(), c.lane());
      if (how == 1) c.sync_warp();
      if (how == 2) c.shfl_xor(kFullMask, 1, 1);
      c.ld_shared(s, c.lane() ^ 1);
    };
  };
  REQUIRE(races(32, kernel(0)));
  REQUIRE_FALSE(races(32, kernel(1)));
  REQUIRE(races(32, kernel(2)));
}

TEST_CASE("sync_warp orders the lanes of its mask alone, and what they knew", "[unit]") {
  // Lanes of a group of eight read what the group wrote: a group's mask is enough.
  const auto within = [](SimCtx& c) {
    auto s = c.shared<int>(32);
    c.st_shared(s, c.lane(), 1);
    c.sync_warp(0xFFU << (c.lane() / 8 * 8));
    c.ld_shared(s, c.lane() ^ 7);
  };
  REQUIRE_FALSE(races(32, within));
  const auto across = [](SimCtx& c) {
    auto s = c.shared<int>(32);
    c.st_shared(s, c.lane(), 1);
    c.sync_warp(0xFFU << (c.lane() / 8 * 8));
    c.ld_shared(s, c.lane() ^ 8);
  };
  REQUIRE(races(32, across));
  // 0 -> 1 by one mask, 1 -> 2 by another: 2 is behind 0.
  const auto chain = [](bool whole) {
    return [whole](SimCtx& c) {
      auto s = c.shared<int>(1);
      if (c.lane() == 0) c.st_shared(s, 0, 1);
      if (c.lane() <= 1) c.sync_warp(0x3U);
      if (whole && (c.lane() == 1 || c.lane() == 2)) c.sync_warp(0x6U);
      if (c.lane() == 2) c.ld_shared(s);
    };
  };
  REQUIRE_FALSE(races(32, chain(true)));
  REQUIRE(races(32, chain(false)));
}

TEST_CASE("a write after reads of several lanes needs all of them to be ordered", "[unit]") {
  const auto kernel = [](std::uint32_t mask) {
    return [mask](SimCtx& c) {
      auto s = c.shared<int>(1);
      if (c.lane() == 0) c.st_shared(s, 0, 1);
      c.sync_warp();
      if (c.lane() < 4) c.ld_shared(s);
      if ((mask >> c.lane() & 1U) != 0) c.sync_warp(mask);
      if (c.lane() == 0) c.st_shared(s, 0, 2);
    };
  };
  REQUIRE_FALSE(races(32, kernel(0xFU)));
  REQUIRE(races(32, kernel(0x7U)));  // lane 3 read and is not in the mask
}

TEST_CASE("older reads that a newer reader does not know are not forgotten", "[unit]") {
  const auto kernel = [](SimCtx& c) {
    auto s = c.shared<int>(1);
    if (c.lane() == 0) c.st_shared(s, 0, 1);
    c.sync_warp();
    if (c.lane() == 5) c.ld_shared(s);           // stamp 1, never ordered behind
    if (c.lane() < 4) c.sync_warp(0xFU);         // the warp's stamp moves on
    if (c.lane() == 1) c.ld_shared(s);           // stamp 2
    if (c.lane() < 4) c.sync_warp(0xFU);
    if (c.lane() == 0) c.st_shared(s, 0, 2);     // behind lane 1, not behind lane 5
  };
  REQUIRE(races(32, kernel));
}

TEST_CASE("bytes of one word may belong to different threads", "[unit]") {
  const auto kernel = [](int step) {
    return [step](SimCtx& c) {
      auto s = c.shared<std::uint8_t>(64);
      c.st_shared(s, c.lane(), std::uint8_t{1});
      c.st_shared(s, (c.lane() + step) % 32, std::uint8_t{2});
    };
  };
  REQUIRE_FALSE(races(32, kernel(0)));
  REQUIRE(races(32, kernel(1)));
  // A word access and a byte access overlap.
  REQUIRE(races(32, [](SimCtx& c) {
    auto s = c.shared<std::uint8_t>(64);
    if (c.lane() == 0) c.st_shared(SimCtx::shared_as<std::uint32_t>(s), 0, 7U);
    if (c.lane() == 1) c.st_shared(s, 3, std::uint8_t{1});
  }));
}

TEST_CASE("everything that is not atomic conflicts between blocks", "[unit]") {
  for (const int how : {0, 1, 2, 3}) {
    DeviceMemory memory;
    const auto x = memory.upload_mutable<int>("x", std::vector<int>(64, 0));
    const LaunchReport r = run({.grid = {2}}, [&](SimCtx& c) {
      const bool first = c.block_x() == 0;
      if (how == 0) c.st(x, c.lane(), static_cast<int>(c.block_x()));
      if (how == 1) c.atomic_add(x, 0, 1);
      if (how == 2) first ? c.st(x, c.lane(), 5) : static_cast<void>(c.ld(x, c.lane()));
      if (how == 3) c.st(x, c.block_x() * 32 + c.lane(), 5);
    });
    CAPTURE(how);
    REQUIRE(r.has(FindingKind::race) == (how == 0 || how == 2));
  }
  // An early reader of another block counts even when this block has read since.
  DeviceMemory memory;
  const auto x = memory.upload_mutable<int>("x", std::vector<int>(1, 0));
  const LaunchReport r = run({.grid = {2}}, [&](SimCtx& c) {
    if (c.lane() == 0) c.ld(x);
    c.sync_block();
    if (c.lane() == 0 && c.block_x() == 1) c.st(x, 0, 1);
  });
  REQUIRE(r.has(FindingKind::race));
}

TEST_CASE("atomics race with plain accesses and not with each other", "[unit]") {
  const auto kernel = [](bool plain_read) {
    return [plain_read](SimCtx& c) {
      auto s = c.shared<int>(1);
      if (c.thread() == 0) c.st_shared(s, 0, 0);
      c.sync_block();
      c.atomic_add(s, 0, 1);
      if (plain_read && c.thread() == 40) c.ld_shared(s);
    };
  };
  REQUIRE_FALSE(races(64, kernel(false)));
  REQUIRE(races(64, kernel(true)));
}

TEST_CASE("two writes of the same bits are their own kind", "[unit]") {
  const LaunchReport r = run({.shared_bytes = 16}, [](SimCtx& c) { c.st_shared(c.shared<int>(1), 0, 7); });
  REQUIRE(kinds(r) == std::vector{FindingKind::same_value_write});
  REQUIRE_THAT(r.findings[0].text, contains_text("thread 1 writes 4 bytes at 0 of shared memory"));
}

TEST_CASE("launches follow one another: what an earlier one wrote is no race", "[unit]") {
  DeviceMemory memory;
  const auto x = memory.allocate<int>("x", 32);
  REQUIRE(run({.grid = {2}}, [&](SimCtx& c) { if (c.block_x() == 0) c.st(x, c.lane(), 1); }).clean());
  REQUIRE(run({.grid = {2}}, [&](SimCtx& c) { if (c.block_x() == 1) c.ld(x, 31 - c.lane()); }).clean());
}

#include "gpu/simt/recorder.hpp"

#include <numeric>

#include "gpu/simt/l2_model.hpp"
#include "tests/unit/gpu/simt/run.hpp"

using namespace kvatlas;
using namespace kvatlas::gpu;

namespace {
AccessCounts count(MemoryOp op, int width, std::uint64_t base, std::uint64_t stride) {
  Request r{.mask = kFullMask};
  for (std::uint64_t lane = 0; lane < 32; ++lane) r.address[lane] = base + lane * stride;
  AccessCounts c;
  count_request(r, op, width, c, nullptr);
  return c;
}
}  // namespace

TEST_CASE("requests of a full warp touch the sectors and wavefronts of the rules", "[unit]") {
  struct Row {
    int width;
    std::uint64_t stride, base;
    int sectors, wavefronts, ideal;
  };
  // Worked by hand from the rules: 32-byte sectors; 32 banks of 4 bytes, phases of 32, 16 and 8 lanes.
  for (const Row& row : {Row{4, 4, 0, 4, 1, 1}, Row{4, 4, 16, 5, 1, 1}, Row{4, 8, 0, 8, 2, 1}, Row{4, 128, 0, 32, 32, 1}, Row{4, 132, 0, 32, 1, 1},
                         Row{4, 0, 0, 1, 1, 1}, Row{2, 2, 0, 2, 1, 1}, Row{1, 1, 31, 2, 1, 1}, Row{8, 8, 0, 8, 2, 2}, Row{16, 16, 0, 16, 4, 4},
                         Row{16, 512, 0, 32, 32, 4}, Row{16, 528, 0, 32, 4, 4}}) {
    CAPTURE(row.width, row.stride, row.base);
    const AccessCounts global = count(MemoryOp::global_load, row.width, row.base, row.stride);
    REQUIRE(global.sectors == row.sectors);
    REQUIRE(global.requests == 1);
    REQUIRE(global.bytes == 32 * row.width);
    const AccessCounts shared = count(MemoryOp::shared_load, row.width, row.base, row.stride);
    REQUIRE(shared.wavefronts == row.wavefronts);
    REQUIRE(shared.ideal_wavefronts == row.ideal);
  }
}

TEST_CASE("lines, partial sectors and serialised atomics of a request", "[unit]") {
  REQUIRE(count(MemoryOp::global_load, 4, 0, 4).lines == 1);
  REQUIRE(count(MemoryOp::global_load, 4, 0, 128).lines == 32);
  REQUIRE(count(MemoryOp::global_store, 4, 0, 4).partial_sectors == 0);
  REQUIRE(count(MemoryOp::global_store, 4, 16, 4).partial_sectors == 2);
  REQUIRE(count(MemoryOp::global_store, 16, 0, 32).partial_sectors == 32);
  REQUIRE(count(MemoryOp::global_atomic, 4, 0, 0).serialised == 32);
  REQUIRE(count(MemoryOp::global_atomic, 4, 0, 4).serialised == 1);
  REQUIRE(count(MemoryOp::global_load, 4, 0, 8).efficiency() == 0.5);
}

TEST_CASE("addresses are aligned as a GPU aligns them: 16 sectors a request, 17 only for a shifted view", "[unit]") {
  for (const std::int64_t shift : {0, 4}) {
    DeviceMemory memory;
    memory.upload("odd", std::vector<char>(13, 'x'));
    const auto x = memory.upload("x", std::vector<int>(1028, 1));
    const LaunchReport r = run({}, [&](SimCtx& c) { c.ld(SimCtx::global_as<const Vec<int, 4>>(x + shift), c.lane()); });
    REQUIRE(r.counts.reads.sectors == (shift == 0 ? 16 : 17));
    REQUIRE(r.counts.reads.requests == 1);
  }
}

TEST_CASE("rounds of a uniform loop are requests of their own; distinct sectors count once", "[unit]") {
  DeviceMemory memory;
  const auto x = memory.upload("x", std::vector<int>(64, 1));
  for (const Schedule& s : all_schedules(3)) {
    const LaunchReport r = run({.threads = 64}, [&](SimCtx& c) {
      for (int i = 0; i < 5; ++i) c.ld(x, c.thread());
    }, s);
    REQUIRE(kinds(r) == kNothing);
    REQUIRE(r.counts.reads.requests == 10);
    REQUIRE(r.counts.reads.sectors == 40);
    REQUIRE(r.counts.reads.distinct_sectors == 8);
    REQUIRE(r.counts.sites.size() == 1);
  }
}

TEST_CASE("a strided loop's short last round is a request of fewer lanes", "[unit]") {
  DeviceMemory memory;
  const auto x = memory.upload("x", std::vector<int>(100, 1));
  const LaunchReport r = run({.threads = 64}, [&](SimCtx& c) {
    for (int i = c.thread(); i < 100; i += c.threads()) c.ld(x, i);
  });
  REQUIRE(kinds(r) == kNothing);
  REQUIRE(r.counts.reads.requests == 4);
  REQUIRE(r.counts.reads.lanes == 100);
  REQUIRE(r.counts.reads.sectors == 13);
}

TEST_CASE("lanes that run an access in different rounds are reported, as their requests are guesses", "[unit]") {
  DeviceMemory memory;
  const auto x = memory.upload("x", std::vector<int>(64, 1));
  const auto kernel = [&](bool reconverge) {
    return run({}, [&, reconverge](SimCtx& c) {
      for (int i = 0; i < 4; ++i) {
        if (i >= c.lane() % 4) c.ld(x, c.lane());
        if (reconverge) c.sync_warp();
      }
    });
  };
  REQUIRE(kinds(kernel(false)) == std::vector{FindingKind::non_uniform_site});
  const LaunchReport r = kernel(true);
  REQUIRE(kinds(r) == kNothing);
  REQUIRE(r.counts.reads.requests == 4);
}

TEST_CASE("an L2 hits what it holds, fetches what it lost and writes back what was changed", "[unit]") {
  L2Model l2(2 * 128);
  for (const std::uint64_t sector : {0, 1, 4, 0, 8}) l2.access(sector, false);  // the third line drops line 1 (sector 4)
  REQUIRE(l2.counts().read_misses == 4);
  REQUIRE(l2.counts().hits == 1);
  l2.access(4, false);  // drops line 0
  l2.access(8, true);
  l2.access(0, true);   // drops line 1; a written sector is not fetched
  REQUIRE(l2.counts().read_misses == 5);
  REQUIRE(l2.counts().hits == 2);
  REQUIRE(l2.counts().written_back == 2);
  DeviceMemory memory;
  const auto x = memory.upload("x", std::vector<int>(64, 1));
  const LaunchReport r = run({.threads = 64, .l2_bytes = std::int64_t{40} << 20}, [&](SimCtx& c) {
    for (int i = 0; i < 5; ++i) c.ld(x, c.thread());
  });
  REQUIRE(r.counts.l2->read_misses == 8);
  REQUIRE(r.counts.l2->hits == 32);
  REQUIRE_THROWS_WITH(L2Model(100), "L2 capacity is 100 bytes, must be at least one line of 128");
}

TEST_CASE("counts do not depend on the schedule", "[unit]") {
  std::optional<AccessCounts> first;
  for (const Schedule& s : all_schedules(4)) {
    DeviceMemory memory;
    const auto x = memory.upload("x", std::vector<int>(4096, 1));
    const auto y = memory.allocate<int>("y", 4096);
    const LaunchReport r = run({.grid = {4}, .threads = 128}, [&](SimCtx& c) {
      for (int i = c.thread(); i < 1000; i += c.threads()) c.st(y, c.block_x() * 1000 + i, c.ld(x, c.block_x() * 1000 + i));
    }, s);
    REQUIRE(kinds(r) == kNothing);
    if (!first) first = r.counts.writes;
    REQUIRE(r.counts.writes == *first);
    REQUIRE(r.counts.reads.sectors == r.counts.writes.sectors);
  }
}

#include "gpu/kernels/row_gather.hpp"

#include "core/errors.hpp"
#include "core/kernels/gather_traffic.hpp"
#include "gpu/verify/selection_case.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::gpu;
using kernels::GatherLaunch;

namespace {
void check(const Verdict& v) {
  CAPTURE(v.shape);
  CHECK(v.why == "");
  CHECK(v.bit_exact);
  CHECK(v.races == 0);
  CHECK(v.counted.reads == v.planned.reads);
  CHECK(v.counted.writes == v.planned.writes);
  CHECK(v.bank_conflicts == 0);
}

/// Eight tokens in two heads, through the executor without a case around it: what the kernel itself says to such lists.
LaunchReport run_kernel(const std::vector<std::int32_t>& kept) {
  DeviceMemory memory;
  GatherArgs<SimCtx> a;
  const auto rows = static_cast<std::int64_t>(kept.size());
  a.starts = memory.upload("starts", std::vector<std::int32_t>{0, static_cast<std::int32_t>(rows)});
  a.kept = memory.upload("kept", kept);
  const std::vector<std::uint16_t> cache(8 * 128, 0x3F80);
  a.k = memory.upload("k", cache);
  a.v = memory.upload("v", cache);
  a.positions = memory.upload("positions", std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 7});
  a.k_out = memory.allocate<std::uint16_t>("k_out", rows * 128);
  a.v_out = memory.allocate<std::uint16_t>("v_out", rows * 128);
  a.positions_out = memory.allocate<std::int32_t>("positions_out", rows);
  a.context = 8;
  Executor executor;
  return simulate(executor, {.grid = {1, 1}, .threads = kGatherThreads}, {}, [&a](SimCtx& c) { row_gather<GatherShape{128}>(c, a); });
}
}  // namespace

TEST_CASE("compacted rows and positions are the source's under every schedule, and their traffic is the entry's", "[unit]") {
  const auto schedules = all_schedules(2);
  for (const GatherInstance& i : gather_instances())
    for (const std::int64_t rows : {1, 8, 37}) check(verify_gather(i, draw_gather(3, 100, rows, 7), schedules));
}

TEST_CASE("heads may keep everything, one token or nothing", "[unit]") {
  const std::vector<Schedule> one{{.lanes = LaneOrder::random, .blocks = BlockOrder::random, .seed = 5}};
  for (const GatherInstance& i : gather_instances()) {
    check(verify_gather(i, draw_gather(2, 40, 41, 3), one));
    check(verify_gather(i, {.context = 70, .starts = {0, 0, 1, 4, 4}, .kept = {69, 0, 1, 2}}, one));
  }
}

TEST_CASE("traffic of a compaction that fits in a hand: two heads of dim 128 keep tokens 1, 2, 9 and 8", "[unit]") {
  const std::vector<std::int32_t> starts{0, 3, 4}, kept{1, 2, 9, 8};
  const auto t = GatherLaunch{.dim = 128, .context = 10, .starts = starts, .kept = kept}.traffic();
  // Reads: starts 2 requests a warp, 4 warps a head; of the two warps with rows: tokens, positions, then two rows a request, twice.
  CHECK(t.reads.requests == 2 * 4 * 2 + 2 + 2 + 2 * (2 + 1));
  // Bytes: 16 requests of 32 lanes for starts; four tokens, four positions, eight rows.
  CHECK(t.reads.bytes == 16 * 128 + 16 + 16 + 8 * 256);
  // Sectors: one a request for starts, tokens; positions 1, 2 | 9 lie in two, 8 of the second head (place 18) in one; 8 a row.
  CHECK(t.reads.sectors == 16 + 2 + 3 + 8 * 8);
  CHECK(t.reads.distinct_sectors == 1 + 1 + 3 + 64);
  CHECK(t.writes.requests == 2 + 2 * (2 + 1));
  CHECK(t.writes.bytes == 16 + 8 * 256);
  CHECK(t.writes.sectors == 2 + 64);
  CHECK(t.writes.distinct_sectors == 1 + 64);
}

TEST_CASE("long compactions move the floor: summed sectors within 5%", "[unit]") {
  const std::vector<Schedule> one{{}};
  const Verdict v = verify_gather(gather_instances()[1], draw_gather(2, 2048, 512, 3), one);
  CHECK(v.ok());
  CHECK(static_cast<double>(32 * (v.counted.reads.sectors + v.counted.writes.sectors)) <= 1.05 * static_cast<double>(v.floor_bytes));
}

TEST_CASE("lists of kept tokens that are unsorted, too long or outside the context are refused", "[unit]") {
  const auto refuse = [](std::int64_t context, std::vector<std::int32_t> starts, std::vector<std::int32_t> kept) {
    (void)GatherLaunch{.dim = 64, .context = context, .starts = starts, .kept = kept}.traffic();
  };
  CHECK_THROWS_WITH(refuse(4, {0, 2}, {2, 1}), "kept[1] is 1, must be above kept[0] (2)");
  CHECK_THROWS_WITH(refuse(4, {0, 2}, {2, 2}), "kept[1] is 2, must be above kept[0] (2)");
  CHECK_THROWS_WITH(refuse(4, {0, 1}, {4}), "kept[0] is 4, must be between 0 and 3");
  CHECK_THROWS_WITH(refuse(4, {0, 1}, {-1}), "kept[0] is -1, must be between 0 and 3");
  CHECK_THROWS_WITH(refuse(1, {0, 2}, {0, 1}), "head 0 keeps 2 tokens, must be at most the context (1)");
  CHECK_THROWS_WITH(refuse(0, {0, 0}, {}), "context is 0, must be positive");
  CHECK_THROWS_WITH(refuse(4, {0, 2}, {1}), "starts must run from 0 to the number of kept tokens (1)");
  CHECK_THROWS_WITH(refuse(4, {0, 2, 1}, {1}), "starts[2] is 1, must not be below starts[1] (2)");
}

TEST_CASE("the kernel traps on lists that nobody checked", "[unit]") {
  CHECK(run_kernel({0, 3, 7}).clean());
  CHECK(run_kernel({0, 3, 8}).has(FindingKind::trap));
  CHECK(run_kernel({-1, 3, 7}).has(FindingKind::trap));
  CHECK(run_kernel({3, 1}).has(FindingKind::trap));
  CHECK(run_kernel({3, 3}).has(FindingKind::trap));
}

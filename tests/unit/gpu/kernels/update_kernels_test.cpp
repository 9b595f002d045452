// accumulated_scores, page_bounds, prefix_merge and weighted_merge against the reference, and what they refuse.
#include <iterator>
#include <utility>

#include "core/kernels/mass_traffic.hpp"
#include "core/kernels/merge_traffic.hpp"
#include "core/kernels/page_bounds_traffic.hpp"
#include "core/kernels/select.hpp"
#include "core/kernels/attention.hpp"
#include "core/kernels/transform.hpp"
#include "gpu/kernels/update_shapes.hpp"
#include "gpu/verify/update_case.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::gpu;
using kernels::MassLaunch, kernels::PageBoundsLaunch, kernels::PrefixMergeLaunch, kernels::WeightedMergeLaunch;

namespace {
void check(const Verdict& v) {
  CAPTURE(v.kernel, v.format, v.shape);
  CHECK(v.why == "");
  CHECK(v.bit_exact);
  CHECK(v.races == 0);
  CHECK(v.counted.reads == v.planned.reads);
  CHECK(v.counted.writes == v.planned.writes);
  CHECK(v.bank_conflicts == 0);
}
using Pairs = std::vector<std::pair<std::int32_t, std::int32_t>>;
}  // namespace

TEST_CASE("attention mass grows as the reference's under every schedule, for one query and for several that see different tokens", "[unit]") {
  const auto schedules = all_schedules(1);
  for (const AccumulateInstance& i : accumulate_instances())
    for (const auto& [tokens, queries] : std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 1}, {200, 1}, {131, 40}, {33, 33}}) check(verify_accumulate(i, {.heads = 2, .tokens = tokens, .queries = queries, .seed = 3}, schedules));
}

TEST_CASE("page bounds have the reference's bits under every schedule: open pages, pages of one token, pages in any order, the last page alone", "[unit]") {
  const auto schedules = all_schedules(1);
  for (const PageBoundsInstance& i : page_bounds_instances()) {
    for (const std::int64_t context : {1, 16, 70}) check(verify_page_bounds(i, {.heads = 2, .context = context, .page = 16}, schedules));
    check(verify_page_bounds(i, {.heads = 1, .context = 75, .page = 7, .paged = false, .seed = 2}, schedules));
    check(verify_page_bounds(i, {.heads = 3, .context = 5, .page = 1, .seed = 2}, schedules));
    check(verify_page_bounds(i, {.heads = 2, .context = 130, .page = 64, .first = 2}, schedules));
  }
}

TEST_CASE("parts of a tree of prefixes merge from the root down as the reference merges them, empty parts included", "[unit]") {
  const auto schedules = all_schedules(1);
  for (const PrefixMergeInstance& i : prefix_merge_instances()) {
    check(verify_prefix_merge(i, {.shared = {600}, .own = {1, 70, 260}, .rows = 2}, schedules));
    check(verify_prefix_merge(i, {.shared = {0, 300, 17}, .own = {0, 5}, .rows = 3, .seed = 2}, schedules));
    check(verify_prefix_merge(i, {.shared = {}, .own = {520}, .rows = 1, .seed = 3}, schedules));
    check(verify_prefix_merge(i, {.shared = {0}, .own = {0}, .rows = 1}, schedules));  // nothing to see: zeros
  }
}

TEST_CASE("value rows merge as the reference blends them, and masses move where they should", "[unit]") {
  const auto schedules = all_schedules(1);
  for (const WeightedMergeInstance& i : weighted_merge_instances())
    for (const bool moves : {false, true}) {
      check(verify_weighted_merge(i, {.heads = 2, .tokens = 40, .mass_moves = moves}, schedules));
      check(verify_weighted_merge(i, {.heads = 1, .tokens = 12, .mass_moves = moves, .pairs = {{11, 10}, {3, 9}, {0, 1}, {5, 4}, {7, 8}}, .seed = 5}, schedules));
    }
}

TEST_CASE("pairs outside the tokens, or of one token, trap", "[unit]") {
  const WeightedMergeInstance& i = weighted_merge_instances()[1];
  for (const auto& [from, to] : Pairs{{4, 4}, {-1, 2}, {2, 9}, {9, 2}, {2, -3}}) {
    DeviceMemory memory;
    WeightedMergeArgs<SimCtx> a;
    a.pairs = SimCtx::global_as<const Vec<std::int32_t, 2>>(memory.upload("pairs", std::vector<std::int32_t>{from, to}));
    a.mass = memory.upload_mutable<std::uint64_t>("mass", std::vector<std::uint64_t>(9, 1));
    a.seen = memory.upload("seen", std::vector<std::uint32_t>(9, 1));
    a.values = memory.upload_mutable<std::uint16_t>("values", std::vector<std::uint16_t>(std::size_t{9} * 64));
    a.tokens = a.stride = 9;
    a.merges = 1;
    Executor executor;
    CAPTURE(from, to);
    CHECK(i.run(executor, {.grid = {1}, .threads = kWeightedMergeThreads}, {}, a).has(FindingKind::trap));
  }
}

TEST_CASE("sizes, pairs and parts that the kernels do not take are refused", "[unit]") {
  CHECK_THROWS_WITH((MassLaunch{.heads = 0, .tokens = 4, .stride = 4}.check()), "heads is 0, must be positive");
  CHECK_THROWS_WITH((MassLaunch{.tokens = 0}.check()), "tokens is 0, must be positive");
  CHECK_THROWS_WITH((MassLaunch{.tokens = 4, .queries = 5, .stride = 4}.check()), "queries is 5, must be between 1 and tokens (4)");
  CHECK_THROWS_WITH((MassLaunch{.tokens = 4, .stride = 3}.check()), "stride is 3, must be at least tokens (4)");
  const auto bounds = [](std::int64_t page, std::int64_t context, std::int64_t first, std::int64_t capacity, std::int64_t stride) {
    PageBoundsLaunch{.dim = 64, .page = page, .context = context, .first = first, .page_capacity = capacity, .page_stride = stride}.check();
  };
  CHECK_THROWS_WITH(bounds(0, 10, 0, 9, 64), "page is 0, must be between 1 and 1048576 tokens");
  CHECK_THROWS_WITH(bounds(16, 0, 0, 9, 64), "context is 0, must be positive");
  CHECK_THROWS_WITH(bounds(16, 40, 3, 9, 64), "first is 3, must be a page of the context, 0 to 2");
  CHECK_THROWS_WITH(bounds(16, 40, 0, 2, 64), "page_capacity is 2, must be at least the pages of the context (3)");
  CHECK_THROWS_WITH(bounds(16, 40, 0, 3, 60), "page_stride and head_stride are 60 and 0, must be multiples of 8 elements");
  const auto parts = [](std::vector<kernels::PrefixPart> of, int levels, std::int64_t rows) { PrefixMergeLaunch{.levels = levels, .rows = rows, .entries = 8, .parts = of}.check(); };
  CHECK_THROWS_WITH(parts({{0, 1, 1}}, 2, 1), "parts has 1 entries, must have 2 for each sequence");
  CHECK_THROWS_WITH(parts({{0, 1, 1}}, 1, 0), "rows is 0, must be positive");
  CHECK_THROWS_WITH(parts({{0, 1, 2}}, 1, 1), "parts[0] has 2 spans and stride 1, must have between 0 and stride spans");
  CHECK_THROWS_WITH(parts({{0, 2, 2}, {5, 2, 2}}, 1, 2), "parts[1] ends at entry 9, must end within 8");
  const auto pairs = [](const Pairs& of, std::int64_t merges) { WeightedMergeLaunch{.tokens = 6, .stride = 6, .merges = merges, .pairs = of}.check(); };
  CHECK_THROWS_WITH(pairs({{0, 1}}, 4), "merges is 4, must be between 0 and half of the tokens (3)");
  CHECK_THROWS_WITH(pairs({{0, 1}}, 2), "pairs has 1 entries, must have 2");
  CHECK_THROWS_WITH(pairs({{0, 6}}, 1), "pairs[0] names token 6, must be between 0 and 5");
  CHECK_THROWS_WITH(pairs({{0, 1}, {1, 2}}, 2), "pairs of head 0 name token 1 twice");
  CHECK_THROWS_WITH((WeightedMergeLaunch{.tokens = 1, .stride = 1}.check()), "tokens is 1, must be at least 2");
}

TEST_CASE("what plans ask of mass_update, state_merge and weighted_merge is what the kernels move, but for control data", "[unit]") {
  // 40 tokens, 4 query rows: logits, mass in and out; a state a row on top.
  const MassLaunch mass{.q_per_kv = 4, .heads = 2, .tokens = 40, .stride = 40};
  const KernelCall update = kernels::MassUpdate{.kv_heads = 2, .q_per_kv = 4, .tokens = Tokens(40)}.call(1);
  CHECK(mass.floor_bytes() == update.traffic.read_bytes + update.traffic.write_bytes + 2 * 4 * 8);
  CHECK(32 * mass.traffic().writes.sectors == update.traffic.write_bytes);
  // Two sequences of three query rows, a shared part of two spans and own ones of one.
  const std::vector<kernels::PrefixPart> parts{{0, 2, 2}, {12, 1, 1}, {6, 2, 2}, {15, 1, 1}};
  const PrefixMergeLaunch prefix{.dim = 128, .levels = 2, .rows = 3, .entries = 18, .parts = parts};
  const KernelCall merge = kernels::StateMerge{.rows = 6, .levels = 3, .v_dim = 128}.call(1);
  CHECK(prefix.floor_bytes() == merge.traffic.read_bytes + merge.traffic.write_bytes);
  CHECK(prefix.traffic().writes.bytes == merge.traffic.write_bytes);
  // One pair a head: two rows in, one out; its pair, masses and counts on top.
  const Pairs pairs{{3, 4}, {3, 4}};
  const WeightedMergeLaunch blend{.dim = 128, .heads = 2, .tokens = 9, .stride = 9, .pairs = pairs};
  const KernelCall rows = kernels::WeightedMerge{.heads = 2, .rows = 1, .row_bytes = 256, .dim = 128}.call(1);
  CHECK(blend.floor_bytes() == rows.traffic.read_bytes + rows.traffic.write_bytes + 2 * (8 + 2 * 12));
  CHECK(blend.traffic().writes.bytes == rows.traffic.write_bytes);
}

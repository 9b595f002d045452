#include "gpu/kernels/top_k.hpp"

#include "core/errors.hpp"
#include "core/kernels/top_k_traffic.hpp"
#include "gpu/verify/selection_case.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::gpu;
using kernels::TopKLaunch;

namespace {
void check(const Verdict& v) {
  CAPTURE(v.shape);
  CHECK(v.why == "");
  CHECK(v.bit_exact);
  CHECK(v.races == 0);
  CHECK(v.counted.reads == v.planned.reads);
  CHECK(v.counted.writes == v.planned.writes);
}

struct Run {
  LaunchReport report;
  std::vector<std::int32_t> chosen;
};
constexpr TopKShape kShape{128};
/// One row through the kernel alone.
Run run_kernel(std::vector<float> scores, std::int64_t k, std::int64_t window) {
  DeviceMemory memory;
  TopKArgs<SimCtx> a;
  a.candidates = static_cast<std::int64_t>(scores.size());
  a.stride = round_up(a.candidates, 4);
  scores.resize(static_cast<std::size_t>(a.stride));
  a.scores = memory.upload("scores", scores);
  a.chosen = memory.allocate<std::int32_t>("chosen", k + window);
  a.k = k;
  a.window = window;
  Executor executor;
  Run run{simulate(executor, {.grid = {1}, .threads = kShape.threads, .shared_bytes = kShape.shared_bytes()}, {}, [&a](SimCtx& c) { top_k<kShape>(c, a); }), {}};
  if (run.report.completed) run.chosen = memory.download(a.chosen, k + window);
  return run;
}
const float kNan = num::quiet_nan();
}  // namespace

TEST_CASE("top_k chooses what the reference chooses under every schedule and moves what its entry says", "[unit]") {
  const auto schedules = all_schedules(1);
  for (const TopKInstance& i : top_k_instances())
    for (const std::int64_t context : {33, 601, 2100}) check(verify_top_k(i, {.rows = 4, .context = context, .budget = 32 + ceil_div(context - 32, 16), .window = 32, .seed = 3}, schedules));
}

TEST_CASE("every budget of a short context agrees with the reference, all or none of the scored tokens included", "[unit]") {
  const std::vector<Schedule> one{{.lanes = LaneOrder::random, .seed = 2}};
  for (const TopKInstance& i : top_k_instances()) {
    if (i.shape.threads > 128) continue;
    for (std::int64_t budget = 5; budget <= 22; ++budget) check(verify_top_k(i, {.rows = 4, .context = 22, .budget = budget, .window = 5}, one));
    check(verify_top_k(i, {.rows = 1, .context = 8, .budget = 8, .window = 8}, one));
    check(verify_top_k(i, {.rows = 2, .context = 1, .budget = 1, .window = 0}, one));
    check(verify_top_k(i, {.rows = 2, .context = 1024, .budget = 512, .window = 0}, one));
  }
}

TEST_CASE("worked selections: ties go to the lower token, zeros of both signs are equal, infinities have their place", "[unit]") {
  CHECK(run_kernel({1.0F, 3.0F, 2.0F, 3.0F, 0.0F}, 2, 0).chosen == std::vector<std::int32_t>{1, 3});
  CHECK(run_kernel({1.0F, 3.0F, 2.0F, 3.0F, 2.0F}, 3, 2).chosen == std::vector<std::int32_t>{1, 2, 3, 5, 6});
  CHECK(run_kernel({-0.0F, 0.0F, -0.0F, -1.0F}, 2, 0).chosen == std::vector<std::int32_t>{0, 1});
  CHECK(run_kernel({-num::infinity(), 5.0F, num::infinity(), -5.0F}, 3, 0).chosen == std::vector<std::int32_t>{1, 2, 3});
  CHECK(run_kernel({2.0F, 1.0F}, 0, 3).chosen == std::vector<std::int32_t>{2, 3, 4});
  CHECK(run_kernel({}, 0, 2).chosen == std::vector<std::int32_t>{0, 1});
}

TEST_CASE("NaN scores trap in the kernel and are refused by the reference", "[unit]") {
  CHECK(run_kernel({1.0F, 2.0F, 3.0F, 4.0F}, 2, 0).report.clean());
  CHECK(run_kernel({1.0F, kNan, 3.0F, 4.0F}, 2, 0).report.has(FindingKind::trap));
  CHECK(run_kernel({1.0F, 2.0F, 3.0F, 4.0F, -kNan}, 2, 0).report.has(FindingKind::trap));
  CHECK_THROWS_WITH(verify_top_k(top_k_instances().front(), {.rows = 1, .context = 3, .budget = 1, .window = 0, .scores = {1.0F, kNan, 2.0F}}, {}), "score[1] is NaN, must be a number");
}

TEST_CASE("budgets above the context, windows above the budget and empty contexts are refused", "[unit]") {
  const auto refuse = [](std::int64_t context, std::int64_t budget, std::int64_t window) {
    return verify_top_k(top_k_instances().front(), {.rows = 1, .context = context, .budget = budget, .window = window}, {});
  };
  CHECK_THROWS_WITH(refuse(10, 11, 4), "k is 7, must be between 0 and 6");
  CHECK_THROWS_WITH(refuse(10, 3, 4), "k is -1, must be between 0 and 6");
  CHECK_THROWS_WITH(refuse(0, 0, 0), "context is 0, must be positive");
  CHECK_THROWS_WITH((TopKLaunch{.rows = 1, .candidates = 6, .stride = 6, .k = 1}.check()), "stride is 6, must be a multiple of 4 and at least 6");
  CHECK_THROWS_WITH((TopKLaunch{.rows = 1, .candidates = 6, .stride = 4, .k = 1}.check()), "stride is 4, must be a multiple of 4 and at least 6");
  CHECK_THROWS_WITH((TopKLaunch{.rows = 0, .candidates = 6, .stride = 8, .k = 1}.check()), "rows is 0, must be positive");
}

TEST_CASE("traffic of a selection that fits in a hand: four passes, the last scores one by one, a store for each round", "[unit]") {
  const std::vector<std::int32_t> chosen{1, 599, 600, 602, 603};
  const auto t = TopKLaunch{.rows = 1, .candidates = 602, .stride = 604, .k = 3, .window = 2, .threads = 128}.traffic(chosen);
  // 602 scores are 150 vectors of 16 bytes, 5 requests, and two single ones.
  CHECK(t.reads.requests == 4 * (5 + 2));
  CHECK(t.reads.bytes == 4 * 602 * 4);
  CHECK(t.reads.sectors == 4 * (75 + 2));
  CHECK(t.reads.distinct_sectors == 76);  // 2,408 bytes
  // Tokens 1 and 599 lie in rounds of 512 scores of their own; the window leaves apart.
  CHECK(t.writes.requests == 3);
  CHECK(t.writes.bytes == 20);
  CHECK(t.writes.sectors == 3);
  CHECK(t.writes.distinct_sectors == 1);
}

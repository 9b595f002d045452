#include "gpu/kernels/integer_decode.hpp"

#include "gpu/verify/case.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::gpu;

namespace {
void check(const std::vector<Verdict>& verdicts) {
  for (const Verdict& v : verdicts) {
    CAPTURE(v.kernel, v.format, v.shape);
    CHECK(v.why == "");
    CHECK(v.bit_exact);
    CHECK(v.races == 0);
    CHECK(v.counted.reads == v.planned.reads);
    CHECK(v.counted.writes == v.planned.writes);
  }
}
const std::vector<Schedule> kOne{{.lanes = LaneOrder::random, .blocks = BlockOrder::random, .seed = 3}};
}  // namespace

TEST_CASE("integer decode gives the reference's bits under every schedule, for each format, and moves what its entry says", "[unit]") {
  for (const DecodeInstance& i : integer_instances()) check(verify_decode(i, {.contexts = {200}, .kv_heads = 1}, all_schedules(1)));
}

TEST_CASE("integer decode: lengths that end inside tiles, spans and pages, and a batch of several", "[unit]") {
  for (const DecodeInstance& i : integer_instances()) check(verify_decode(i, {.contexts = {1, 129, 577, 64}, .kv_heads = 1, .page = 32}, kOne));
}

TEST_CASE("integer decode at the edges of its ranges: equal scores, one dominant score, zero scales, largest codes", "[unit]") {
  for (const DecodeInstance& i : integer_instances())
    for (const DecodeContent content : {DecodeContent::equal_scores, DecodeContent::dominant, DecodeContent::zero_scales, DecodeContent::largest_codes})
      check(verify_decode(i, {.contexts = {193}, .kv_heads = 1, .residual_window = 32, .content = content}, kOne));
}

TEST_CASE("integer decode: a sequence has the same bits alone and in a batch of seven", "[unit]") {
  for (const DecodeInstance& i : integer_instances()) {
    if (i.shape.dim > 128) continue;
    const auto dim = static_cast<std::size_t>(i.shape.dim * i.shape.q_per_kv);
    const auto alone = decode_output(i, {.contexts = {333}, .kv_heads = 1}, {});
    const auto batch = decode_output(i, {.contexts = {40, 64, 300, 333, 1, 257, 90}, .kv_heads = 1, .page = 32}, {.lanes = LaneOrder::descending, .blocks = BlockOrder::descending});
    CAPTURE(name_of(i.shape));
    REQUIRE(std::vector(batch.begin() + static_cast<std::ptrdiff_t>(3 * dim), batch.begin() + static_cast<std::ptrdiff_t>(4 * dim)) == alone);
  }
}

TEST_CASE("long integer decodes move the floor: summed and distinct sectors within 5%", "[unit]") {
  for (const DecodeInstance& i : integer_instances()) {
    const Verdict v = verify_decode(i, {.contexts = {2048}, .kv_heads = 1}, kOne).front();
    CAPTURE(v.format, v.shape, v.bank_conflicts, v.floor_bytes, v.counted.reads.sectors);
    CHECK(v.ok());
    CHECK(static_cast<double>(32 * v.counted.reads.sectors) <= 1.05 * static_cast<double>(v.floor_bytes));
    CHECK(static_cast<double>(32 * v.counted.reads.distinct_sectors) <= 1.05 * static_cast<double>(v.floor_bytes));
  }
}

#include "reference/primitives/plans.hpp"

#include <algorithm>

#include "tests/catch.hpp"

using namespace kvatlas;

namespace {

/// The calls of one kernel in a plan, in order.
std::vector<KernelCall> calls_of(const Plan& plan, KernelId kernel) {
  std::vector<KernelCall> found;
  std::ranges::copy_if(plan.calls(), std::back_inserter(found), [kernel](const KernelCall& c) { return c.kernel == kernel; });
  return found;
}

constexpr CodeFormat kFp8{.kind = CodeKind::fp8, .bits = 8};

}  // namespace

TEST_CASE("a prompt whose rows are coded as they come is appended in its format and never packed again", "[unit]") {
  const CacheShape shape = uniform_shape(2, 8, 4, 128);
  const History h{.prompt = 1000_tok, .sequences = 3};
  const Plan coded = side_prefill_plan(shape, h, [](const LayerClass&, Side, Tokens) { return SideLayout{.format = kFp8}; });
  CHECK(calls_of(coded, KernelId::quantize_pack).empty());
  const auto appends = calls_of(coded, KernelId::append);
  REQUIRE(appends.size() == 1);
  CHECK(appends[0].traffic.write_bytes == 3 * 4 * 1000 * (128 + 128));
  CHECK(appends[0].traffic.read_bytes == 3 * 4 * 1000 * (128 + 128) * 2);
  CHECK(calls_of(dense_prefill_plan(shape, h), KernelId::append)[0].traffic.write_bytes == 3 * 4 * 1000 * (128 + 128) * 2);
}

TEST_CASE("a side that waits in plain rows is appended plain and packed after the prompt", "[unit]") {
  const CacheShape shape = uniform_shape(1, 8, 4, 128);
  const Plan plan = side_prefill_plan(shape, {.prompt = 1000_tok}, [](const LayerClass&, Side side, Tokens) {
    return side == Side::key ? SideLayout{.format = kFp8, .plain = 32_tok, .flush = 32_tok} : SideLayout{.format = kFp8};
  });
  CHECK(calls_of(plan, KernelId::append)[0].traffic.write_bytes == 4 * 1000 * (128 * 2 + 128));
  const auto packs = calls_of(plan, KernelId::quantize_pack);
  REQUIRE(packs.size() == 1);
  CHECK(packs[0].traffic.write_bytes == 4 * 968 * 128);
}

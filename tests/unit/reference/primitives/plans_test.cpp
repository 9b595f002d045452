#include "reference/primitives/plans.hpp"

#include <algorithm>

#include "reference/compose/recipe.hpp"
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

TEST_CASE("a learned index is scanned whole, and attention reads what it chose", "[unit]") {
  CacheShape shape{.classes = {{.kind = RowKind::latent, .q_heads = 128, .kv_heads = 1, .k_dim = 576, .v_dim = 512, .index_dim = 128,
                                .index_bytes = 132.0, .index_top_k = 2048, .layers = {0, 1}}}};
  const History h{.prompt = 65536_tok, .sequences = 4};
  const auto check = [&](const Plan& plan, std::int64_t row_bytes) {
    const auto scan = calls_of(plan, KernelId::label_score), choice = calls_of(plan, KernelId::top_k), read = calls_of(plan, KernelId::decode_attention);
    REQUIRE(scan.size() == 1);
    CHECK(scan[0].launches == 2);
    CHECK(scan[0].traffic.read_bytes == 4 * (65536 * 132 + 128 * 4));
    CHECK(scan[0].traffic.write_bytes == 4 * 65536 * 4);
    REQUIRE(choice.size() == 1);
    CHECK(choice[0].traffic.read_bytes == 4 * 65536 * 4);
    CHECK(choice[0].traffic.write_bytes == 4 * 2048 * 4);
    REQUIRE(read.size() == 1);
    CHECK(read[0].traffic.read_bytes == 4 * 2048 * row_bytes + 4 * 128 * 576 * 2);
  };
  check(dense_decode_plan(shape, h), 576 * 2);
  check(side_decode_plan(shape, h, [](const LayerClass&, Side, Tokens) { return SideLayout{.format = kFp8}; }), 576);
  // Nothing to choose: every row is read and no index row.
  const Plan few = dense_decode_plan(shape, {.prompt = 2048_tok});
  CHECK(calls_of(few, KernelId::label_score).empty());
  CHECK(calls_of(few, KernelId::decode_attention)[0].traffic.read_bytes == 2048 * 576 * 2 + 128 * 576 * 2);
}

TEST_CASE("methods that do not hold index rows refuse layers that keep them", "[unit]") {
  CacheShape shape = uniform_shape(1, 8, 2, 128);
  shape.classes[0].index_dim = 128;
  shape.classes[0].index_bytes = 132.0;
  for (const char* slug : {"fp8_kv", "int8_pth", "kivi"}) {
    const MethodChoice m = parse_choice(slug);
    const auto reason = m.method->why_not(m.row, shape);
    REQUIRE(reason.has_value());
    CHECK(reason->starts_with("a layer keeps index rows of 132 bytes a token, must keep none"));
    shape.classes[0].index_bytes = 0;
    CHECK_FALSE(m.method->why_not(m.row, shape).has_value());
    shape.classes[0].index_bytes = 132.0;
  }
}

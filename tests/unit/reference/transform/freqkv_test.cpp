#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

Scenario scenario(const std::string& text, std::int64_t prompt, std::int64_t chunk) {
  const MethodChoice choice = parse_choice(text);
  return {.method = choice.method, .shape = uniform_shape(1, 2, 1, 16, Dtype::f32, {.rotary_dim = 16}), .row = choice.row,
          .prompt = prompt, .chunk = chunk, .decode = 0, .seed = 3};
}

}  // namespace

TEST_CASE("freqkv: slots follow the closed form over hundreds of steps", "[unit]") {
  // capacity 33, one sink, span 32, 16 coefficients: a compression every 16 tokens once 33 are in.
  const Scenario s = scenario("freqkv:capacity=33,sinks=1,ratio=0.5", 20, 20);
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  for (std::int64_t n = 21; n <= 400; ++n) {
    run_decode(*cache, s, n - 21, 1);
    const std::int64_t compressions = n <= 33 ? 0 : (n - 33 + 15) / 16;
    REQUIRE(cache->kept(0, 0).value == n - 16 * compressions);
    REQUIRE(cache->kept(0, 0).value <= 33);
  }
}

TEST_CASE("freqkv: a constant value channel stays constant through every compression", "[unit]") {
  const Scenario s = scenario("freqkv:capacity=20,sinks=2,ratio=0.4", 1, 1);
  const auto cache = open_cache(s);
  Array q({2, 100, 16}, 0.5F), k({1, 100, 16}, 0.25F), v({1, 100, 16}, 3.0F), out({2, 100, 16});
  std::vector<std::int64_t> positions;
  for (std::int64_t i = 0; i < 100; ++i) positions.push_back(i);
  cache->forward(0, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {positions.data(), {100}}}, out.view());
  for (const float f : out.values()) REQUIRE(f == Approx(3.0F).epsilon(1e-5));
}

TEST_CASE("freqkv: at the paper's default 8,192 tokens take three compressions", "[unit]") {
  const MethodChoice m = parse_choice("freqkv");
  const CacheShape shape = uniform_shape(1, 1, 1, 128, Dtype::bf16, {.rotary_dim = 128});
  const auto slots = [&](std::int64_t n) {
    return formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(n)}).total().value / (2 * 128 * 2);
  };
  CHECK(slots(4096) == 4096);
  CHECK(slots(4097) == 2051);
  CHECK(slots(8192) == 8192 - 3 * 2046);
}

TEST_CASE("freqkv: refusals name the parameter", "[unit]") {
  const CacheShape shape = uniform_shape(1, 1, 1, 16);
  const auto reason = [&](const std::string& text) { return Recipe::parse(text).why_not(shape).value_or(""); };
  CHECK(reason("freqkv:capacity=8,sinks=8") == "freqkv: capacity is 8, must exceed sinks (8) by at least 2");
  CHECK(reason("freqkv:capacity=8,sinks=4,ratio=0.05") == "freqkv: ratio is 0.05, keeps no coefficient of a span of 4 tokens");
  CacheShape windowed = shape;
  windowed.classes[0].window = Tokens(64);
  CHECK(Recipe::parse("freqkv").why_not(windowed) == "freqkv: a sliding window of 64 tokens has no meaning over slots; use full for such layers");
}

TEST_CASE("freqkv: a learned sink joins the sum, as in the full cache while nothing is compressed", "[unit]") {
  Scenario s = scenario("freqkv:capacity=32", 1, 1);
  s.shape.classes[0].attention_sink = true;
  const Inputs in = inputs_for(s.shape, 0, 0, 10, 5);
  Array sinks({2}), ours({2, 10, 16}), full({2, 10, 16}), without({2, 10, 16});
  sinks.values() = {0.5F, 2.0F};
  StepInput step = in.step();
  open_cache(s)->forward(0, step, without.view());
  step.sinks = sinks.view();
  open_cache(s)->forward(0, step, ours.view());
  Recipe::parse("full").bind(s.shape).open()->forward(0, step, full.view());
  CHECK(ours.values() == full.values());
  CHECK(ours.values() != without.values());
}

TEST_CASE("freqkv: a refused load leaves every layer as it was", "[unit]") {
  Scenario s = scenario("freqkv:capacity=32", 9, 9);
  s.shape = uniform_shape(2, 2, 1, 16, Dtype::f32, {.rotary_dim = 16});
  const auto cache = open_cache(s), other = open_cache(s);
  run_prompt(*cache, s);
  run_prompt(*other, s);
  run_decode(*other, s, 0, 1);
  auto saved = other->buffers();
  for (NamedBuffer& b : saved)
    if (b.name == "layer1/v_rows/head0") b.bytes.resize(b.bytes.size() - 64);
  const std::uint64_t before = digest(cache->buffers());
  CHECK_THROWS_WITH(cache->load(saved), "layer 1 has 10 keys and 9 values, must be as many and at most 32");
  CHECK(digest(cache->buffers()) == before);
}

TEST_CASE("freqkv: a step's plan attends to the mean of a cycle, and memory covers its top", "[unit]") {
  // 4,096 slots, 4 sinks, half of 4,092 kept: a compression frees 2,046 slots, so a full cycle has 2,051 to 4,096 slots.
  const MethodChoice m = parse_choice("freqkv");
  const CacheShape shape = uniform_shape(1, 1, 1, 64);
  for (const std::int64_t context : {100, 4096, 4097, 65536, 131072}) {
    const std::int64_t slots = context <= 4096 ? context : 3074;  // 4,096 - 2,045 / 2
    std::int64_t read = 0;
    const Plan plan = m.method->decode_plan(m.row, shape, {.prompt = Tokens(context)}, {});
    for (const KernelCall& c : plan.calls())
      if (c.kernel == KernelId::decode_attention) read += c.traffic.read_bytes;
    CHECK(read == slots * 2 * 64 * 2 + 64 * 2);
  }
  // 65,536 tokens: 31 compressions leave 2,110 slots now, and there were 4,096 before the last one.
  const Ledger ledger = m.method->ledger_formula(m.row, shape, {.prompt = 4096_tok, .generated = Tokens(61440), .sequences = 3}, {});
  CHECK(ledger.total().value == 3 * 2110 * 2 * 64 * 2);
  CHECK(ledger.high_water().value == 3 * 4096 * 2 * 64 * 2);
  const Ledger small = m.method->ledger_formula(m.row, shape, {.prompt = 100_tok}, {});
  CHECK(small.high_water() == small.total());
}

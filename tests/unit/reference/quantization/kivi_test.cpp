#include <algorithm>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/primitives/group_quantizer.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

std::optional<std::string> refusal(const std::string& recipe, const CacheShape& shape) {
  const MethodChoice m = parse_choice(recipe);
  return why_not(*m.method, m.row, shape);
}

Scenario scenario(const std::string& recipe, std::int64_t prompt, Dtype dtype = Dtype::f16) {
  const MethodChoice choice = parse_choice(recipe);
  return {.method = choice.method, .shape = uniform_shape(1, 2, 1, 32, dtype, {.rotary_dim = 32}), .row = choice.row,
          .prompt = prompt, .chunk = prompt, .decode = 0, .seed = 3};
}

Bytes counted(const KvCache& cache, std::string_view component, Side side) { return count_ledger(cache.buffers()).of(component, side); }

}  // namespace

TEST_CASE("kivi: bytes of one layer and kv head of width 128 are those of the worked examples", "[unit]") {
  struct Example {
    const char* recipe;
    std::int64_t tokens, key, value;
  };
  for (const Example& e : {Example{"kivi", 4096, 196608, 223232}, Example{"kivi", 4100, 197632, 223424},
                           Example{"kivi:group_size=64", 32768, 1310720, 1338368}}) {
    const MethodChoice m = parse_choice(e.recipe);
    const CacheShape shape = uniform_shape(1, 1, 1, 128, Dtype::f16);
    CAPTURE(e.recipe, e.tokens);
    for (const Side side : {Side::key, Side::value}) {
      const auto store = m.method->open_side(m.row, shape.classes.front(), 0, side, Dtype::f16);
      store->append(Array({1, e.tokens, 128}, 0.5F).view());
      store->settle(true);
      std::vector<NamedBuffer> buffers;
      store->buffers("x", buffers);
      REQUIRE(count_ledger(buffers).total().value == (side == Side::key ? e.key : e.value));
    }
#ifndef KVATLAS_POISON_FORMULAS
    const Ledger formula = formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(e.tokens)});
    REQUIRE(formula.total(Side::key).value == e.key);
    REQUIRE(formula.total(Side::value).value == e.value);
    REQUIRE(formula.prefill().value == e.tokens * 512);  // the prompt is plain until it ends
#endif
  }
}

TEST_CASE("kivi: below the residual window the cache is the full cache", "[unit]") {
  Scenario s = scenario("kivi", 120, Dtype::bf16), plain = s;
  plain.method = &find_method("full");
  plain.row = {};
  const auto cache = open_cache(s), full = open_cache(plain);
  REQUIRE(run_prompt(*cache, s) == run_prompt(*full, plain));
  REQUIRE(run_decode(*cache, s, 0, 8) == run_decode(*full, plain, 0, 8));  // token 128 is flushed after its own step
  REQUIRE(counted(*cache, "codes", Side::key).value == 128 * 32 / 4);
  REQUIRE(counted(*cache, "codes", Side::value).value == 0);
  REQUIRE(run_decode(*cache, s, 8, 1) != run_decode(*full, plain, 8, 1));
}

TEST_CASE("kivi: the key residual cycles, the value residual is pinned at the window", "[unit]") {
  const Scenario s = scenario("kivi:residual_window=32", 75);
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  constexpr std::int64_t kRow = 32 * 2;  // bytes of a plain row
  REQUIRE(counted(*cache, "residual", Side::key).value == (75 - 64) * kRow);
  REQUIRE(counted(*cache, "residual", Side::value).value == 32 * kRow);
  for (std::int64_t step = 0; step < 24; ++step) {
    run_decode(*cache, s, step, 1);
    REQUIRE(counted(*cache, "residual", Side::key).value == (76 + step) % 32 * kRow);
    REQUIRE(counted(*cache, "residual", Side::value).value == 32 * kRow);
  }
}

TEST_CASE("kivi: a prompt of whole windows leaves no plain keys, yet a token sees itself exactly", "[unit]") {
  const Scenario s = scenario("kivi:residual_window=32", 64);
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  REQUIRE(counted(*cache, "residual", Side::key).value == 0);
  run_decode(*cache, s, 0, 1);
  REQUIRE(counted(*cache, "residual", Side::key).value == 32 * 2);
}

TEST_CASE("kivi: a refused crop leaves both sides as they were", "[unit]") {
  const Scenario s = scenario("kivi:residual_window=32", 40);
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  run_decode(*cache, s, 0, 2);
  const std::uint64_t before = digest(cache->buffers());
  REQUIRE_THROWS_WITH(cache->crop(Tokens(40)),  // keys could go back, values could not
                      "crop to 40 tokens would take back rows that are quantized: 10 are, at that length 8 were");
  REQUIRE(digest(cache->buffers()) == before);
}

#ifndef KVATLAS_POISON_FORMULAS
TEST_CASE("kivi: sides apart and plain edges are counted as their formula says", "[unit]") {
  for (const char* text : {"k=kivi:bits=2,residual_window=32;v=kivi:bits=4,residual_window=64", "k=fp8_kv;v=kivi:residual_window=32",
                           "sinks=4:full;*:kivi:residual_window=32", "recent=20:full;*:kivi:residual_window=32"}) {
    CAPTURE(text);
    Scenario s = scenario("kivi", 150);
    const BoundRecipe recipe = Recipe::parse(text).bind(s.shape);
    const auto cache = recipe.open();
    run_prompt(*cache, s, [&] {
      REQUIRE(count_ledger(cache->buffers()).total().value == recipe.ledger(s.history(0)).prefill().value);
    });
    for (std::int64_t step = 0; step < 70; ++step) {
      const Ledger counted = count_ledger(cache->buffers()), formula = recipe.ledger(s.history(step));
      for (const LedgerEntry& e : formula.entries()) {
        CAPTURE(step, e.component, name_of(e.side));
        REQUIRE(counted.of(e.component, e.side).value == formula.of(e.component, e.side).value);
      }
      REQUIRE(counted.total() == formula.total());
      run_decode(*cache, s, step, 1);
    }
  }
}
#endif

TEST_CASE("kivi: decode=helper rounds product and sum to fp16, decode=kernel once in float32", "[unit]") {
  // The worked example of one group of 8 at 2 bits: minimum -0.300048828, scale 0.25, codes 2 2 0 3 1 1 2 1.
  const float x[] = {0.1F, 0.2F, -0.3F, 0.45F, 0.05F, -0.15F, 0.3F, -0.02F};
  const GroupQuantizer two{.bits = 2, .group_size = 8, .stepwise_decode = true};
  std::vector<std::uint8_t> codes(8);
  const GroupQuantizer::Meta m = two.encode(x, codes);
  CHECK(codes == std::vector<std::uint8_t>{2, 2, 0, 3, 1, 1, 2, 1});
  const float expected[] = {0.199951172F, 0.199951172F, -0.300048828F, 0.449951172F, -0.0500488281F, -0.0500488281F, 0.199951172F, -0.0500488281F};
  for (std::size_t i = 0; i < 8; ++i) CHECK(two.decode(codes[i], m) == expected[i]);
  // At 4 bits code 13 of scale 0.0500183105 shows the second rounding; what overflows fp16 saturates.
  GroupQuantizer four{.bits = 4, .group_size = 8, .stepwise_decode = true};
  CHECK(four.decode(13, {.scale = 0.0500183105F, .zero = -0.300048828F}) == 0.350341797F);
  four.stepwise_decode = false;
  CHECK(four.decode(13, {.scale = 0.0500183105F, .zero = -0.300048828F}) == 0.350189209F);
  CHECK(two.decode(3, {.scale = 21840.0F, .zero = 0.0F}) == 65504.0F);
}

TEST_CASE("kivi: groups of either axis are flushed or coded one by one as the axis demands", "[unit]") {
  for (const char* text : {"kivi:residual_window=32,key_groups=token", "kivi:residual_window=32,value_groups=channel", "kivi:residual_window=32,key_groups=token,value_groups=channel"}) {
    CAPTURE(text);
    const Scenario s = scenario(text, 75);
    const auto cache = open_cache(s);
    run_prompt(*cache, s);
    constexpr std::int64_t kRow = 32 * 2;
    const bool keys_one_by_one = std::string_view(text).find("key_groups=token") != std::string_view::npos;
    const bool values_flushed = std::string_view(text).find("value_groups=channel") != std::string_view::npos;
    for (std::int64_t step = 0; step < 24; ++step) {
      CHECK(counted(*cache, "residual", Side::key).value == (keys_one_by_one ? 32 : (75 + step) % 32) * kRow);
      CHECK(counted(*cache, "residual", Side::value).value == (values_flushed ? (75 + step) % 32 : 32) * kRow);
      run_decode(*cache, s, step, 1);
    }
  }
  CHECK(refusal("kivi:key_groups=token,value_groups=channel", uniform_shape(1, 1, 1, 80)) == "group_size is 32, must divide head_dim (80)");
  CHECK(refusal("kivi:value_groups=channel", uniform_shape(1, 1, 1, 80)) == std::nullopt);
}

TEST_CASE("kivi: at 2 bits keys with outlier channels lose least in groups along a channel", "[unit]") {
  const CacheShape shape = uniform_shape(1, 1, 1, 64, Dtype::f16);
  Random random(5);
  Array rows({1, 256, 64});
  for (float& x : rows.values()) x = random.normal();
  for (std::int64_t t = 0; t < 256; ++t) rows.view()(0, t, 7) = rows.view()(0, t, 7) + 12.0F;
  const auto error = [&](const char* text) {
    const MethodChoice m = parse_choice(text);
    const auto store = m.method->open_side(m.row, shape.classes.front(), 0, Side::key, Dtype::f16);
    store->append(rows.view());
    store->settle(true);
    Array decoded({128, 64});
    store->read(0, 0, decoded.view());
    double sum = 0;
    for (std::int64_t t = 0; t < 128; ++t)
      for (std::int64_t c = 0; c < 64; ++c) sum += static_cast<double>((decoded.view()(t, c) - rows.view()(0, t, c)) * (decoded.view()(t, c) - rows.view()(0, t, c)));
    return sum;
  };
  CHECK(3 * error("kivi") < error("kivi:key_groups=token"));
}

TEST_CASE("kivi: refusals name the field, the value and what is allowed", "[unit]") {
  const CacheShape shape = uniform_shape(2, 4, 2, 80);
  REQUIRE(refusal("kivi:group_size=16", shape) == std::nullopt);
  REQUIRE(refusal("kivi:bits=3", shape) == "bits is 3, must be 2, 4 or 8: codes fill 32-bit words");
  REQUIRE(refusal("kivi:group_size=8", shape) == "group_size is 8, must be a multiple of 16 at 2 bits: a group fills 32-bit words");
  REQUIRE(refusal("kivi:group_size=16,residual_window=40", shape) == "residual_window is 40, must be a multiple of group_size (16)");
  REQUIRE(refusal("kivi", shape) == "group_size is 32, must divide head_dim (80)");
  CacheShape windowed = uniform_shape(2, 4, 2, 64);
  windowed.classes.front().window = Tokens(512);
  REQUIRE(refusal("kivi", windowed) == "a layer has a sliding window of 512 tokens, must have none: kivi keeps every row");
  CacheShape latent = uniform_shape(2, 4, 1, 64);
  latent.classes.front().kind = RowKind::latent;
  REQUIRE(refusal("kivi", latent) == "a layer keeps latent rows, must keep keys and values");
}

TEST_CASE("kivi: the released path moves the packed cache about three times", "[unit]") {
  const MethodChoice m = parse_choice("kivi");
  const CacheShape shape = uniform_shape(32, 32, 32, 128, Dtype::f16);
  const History h{.prompt = Tokens(16384), .generated = Tokens(1)};
  const auto traffic = [](const Plan& plan) { return plan.read_bytes() + plan.write_bytes(); };
  const double ideal = traffic(m.method->decode_plan(m.row, shape, h, {}));
  const double released = traffic(m.method->released_decode_plan(m.row, shape, h, {}));
  REQUIRE(released > 3 * ideal);
  REQUIRE(released < 5 * ideal);
}

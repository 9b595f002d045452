#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/primitives/group_quantizer.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("rotatekv: the quantizer by hand, clipped extremes and a rounded zero point", "[unit]") {
  const GroupQuantizer q{.bits = 2, .group_size = 4, .work = Dtype::f32, .meta = MetaType::f32, .scheme = QuantScheme::integer_zero, .clip = 0.8F};
  std::vector<std::uint8_t> codes(4);
  const auto m = q.encode(std::vector<float>{-1, 0.5F, 2, 0.25F}, codes);
  CHECK(std::fabs(m.scale - 0.8F) < 1e-6F);
  CHECK(m.zero == 1.0F);
  CHECK(codes == std::vector<std::uint8_t>{0, 2, 3, 1});
  CHECK(std::fabs(q.decode(3, m) - 1.6F) < 1e-6F);
}

TEST_CASE("rotatekv: at 8 bits keys and values come back, whatever rotation and order do to them", "[unit]") {
  const MethodChoice m = parse_choice("rotatekv:bits=8,clip=1,group_size=32,head_group=2");
  const CacheShape shape = uniform_shape(1, 4, 4, 32, Dtype::f32, {.rotary_dim = 32});
  for (const Side side : {Side::key, Side::value}) {
    const auto store = m.method->open_side(m.row, shape.classes.front(), 0, side, Dtype::f32);
    CHECK(store->before_rope() == (side == Side::key));
    Array rows({4, 20, 32});
    Random random(6);
    for (float& f : rows.values()) f = random.normal();
    store->append(rows.view());
    store->settle(true);
    for (int h = 0; h < 4; ++h) {
      Array out({20, 32});
      store->read(h, 0, out.view());
      for (std::int64_t i = 0; i < 20; ++i)
        for (std::int64_t c = 0; c < 32; ++c) CHECK(std::fabs(out.view()(i, c) - rows.view()(h, i, c)) < 0.06F);
    }
  }
}

TEST_CASE("rotatekv: tokens with the largest hidden values of the prompt stay plain, later ones are coded", "[unit]") {
  const MethodChoice m = parse_choice("rotatekv:group_size=32,head_group=2,sinks=3");
  const CacheShape shape = uniform_shape(1, 2, 2, 32, Dtype::f32, {.rotary_dim = 32});
  const auto cache = m.method->open(m.row, shape, {});
  Array hidden({10, 6});
  hidden.view()(4, 2) = -9;
  hidden.view()(4, 3) = 8;  // the same token twice
  hidden.view()(7, 0) = 7;
  hidden.view()(8, 0) = 6;  // fourth: too small
  const Inputs in = inputs_for(shape, 0, 0, 10, 3);
  StepInput step = in.step();
  step.hidden = hidden.view();
  Array out({2, 10, 32});
  cache->forward(0, step, out.view());
  cache->end_prefill();
  const auto buffers = cache->buffers();
  for (const char* name : {"layer0/k_sink_tokens", "layer0/v_sink_tokens"}) {
    const auto& tokens = find_buffer(buffers, name).bytes;
    REQUIRE(tokens.size() == 8);
    CHECK(std::to_integer<int>(tokens[0]) == 4);
    CHECK(std::to_integer<int>(tokens[4]) == 7);
  }
  CHECK(cache->content_counts().get("k_sinks", -1) == 2);
  CHECK(cache->content_counts().get("v_sink_values", -1) == 2 * 64);
  CHECK(count_ledger(buffers).of("sink_rows", Side::key).value == 2 * (64 * 4 + 4));
  CHECK(count_ledger(buffers).of("codes", Side::key).value == 8 * 64 * 2 / 8);
#ifndef KVATLAS_POISON_FORMULAS
  CHECK(formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(10)}, cache->content_counts()).total() == count_ledger(buffers).total());
#endif
}

TEST_CASE("rotatekv: 2.25 bits a value at groups of 128", "[unit]") {
#ifndef KVATLAS_POISON_FORMULAS
  const MethodChoice m = parse_choice("rotatekv");
  const CacheShape shape = uniform_shape(1, 8, 8, 128, Dtype::bf16);
  const Ledger ledger = formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(1000)});
  CHECK(8.0 * static_cast<double>(ledger.total(Side::value).value) == 2.25 * 1000 * 1024);
  CHECK(ledger.total(Side::key).value - ledger.total(Side::value).value == 2 * 1024);  // the channel order
#endif
}

TEST_CASE("rotatekv: shapes without a Hadamard matrix are refused, as is an order that repeats a channel", "[unit]") {
  const MethodChoice m = parse_choice("rotatekv:group_size=16");
  CHECK(why_not(*m.method, m.row, uniform_shape(1, 4, 4, 48, Dtype::bf16)) ==
        "head_dim is 48 in groups of 4 heads, products must be powers of two: rotations are Hadamard matrices");
  CHECK(why_not(*m.method, m.row, uniform_shape(1, 6, 6, 64, Dtype::bf16)) == "head_group is 4, must divide kv_heads (6)");
  TensorMap file;
  file["layer0.k_order"] = {.dims = {64}, .values = std::vector<float>(64, 1)};
  CHECK_THROWS_WITH(m.method->open(m.row, uniform_shape(1, 1, 1, 64, Dtype::bf16), {.trained = &file}),
                    "tensor \"layer0.k_order\" names channel 1 twice");
}

#ifndef KVATLAS_POISON_FORMULAS
TEST_CASE("rotatekv: layers of unlike widths choose different tokens, and the formula follows each; so does one side by itself", "[unit]") {
  const CacheShape one = uniform_shape(2, 2, 2, 32, Dtype::f32, {.rotary_dim = 32});
  CacheShape shape = one;
  shape.classes.front().layers = {0};
  shape.classes.push_back(shape.classes.front());
  shape.classes.back().layers = {1};
  shape.classes.back().v_dim = 64;
  const auto run = [](KvCache& cache, const CacheShape& of) {
    for (int layer = 0; layer < 2; ++layer) {
      Array hidden({10, 6});
      hidden.view()(4, 2) = -9;
      hidden.view()(4, 3) = 8;
      hidden.view()(layer == 0 ? 4 : 7, 0) = 7;  // one plain token in layer 0, two in layer 1
      const Inputs in = inputs_for(of, layer, 0, 10, 3);
      StepInput step = in.step();
      step.hidden = hidden.view();
      Array out({2, 10, of.class_of(layer).v_dim});
      cache.forward(layer, step, out.view());
    }
    cache.end_prefill();
  };
  const MethodChoice m = parse_choice("rotatekv:group_size=32,head_group=2,sinks=3");
  const auto cache = m.method->open(m.row, shape, {});
  run(*cache, shape);
  CHECK(cache->content_counts().get("k_sinks", -1) == 3);
  CHECK(formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(10)}, cache->content_counts()).total() == count_ledger(cache->buffers()).total());
  const BoundRecipe bound = Recipe::parse("k=kivi:group_size=32,residual_window=32;v=rotatekv:group_size=32,head_group=2,sinks=3").bind(one);
  const auto mixed = bound.open({});
  run(*mixed, one);
  CHECK(mixed->content_counts().get("v_sinks", -1) == 3);
  CHECK(bound.ledger({.prompt = Tokens(10)}, mixed->content_counts()).total(Side::value) == count_ledger(mixed->buffers()).total(Side::value));
}
#endif

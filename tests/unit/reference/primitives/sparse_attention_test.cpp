#include "reference/primitives/sparse_attention.hpp"

#include "reference/primitives/step.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("a new token sees the old rows and those new ones that its mask shows", "[unit]") {
  REQUIRE(seen_rows({}, 3, 2, 0) == Slots{0, 1, 2, 3});
  REQUIRE(seen_rows({}, 0, 2, 1) == Slots{0, 1});
  REQUIRE(seen_rows({.kind = MaskKind::bidirectional}, 1, 2, 0) == Slots{0, 1, 2});
  const std::uint8_t tree[9] = {1, 0, 0, 1, 1, 0, 1, 0, 1};  // two branches under token 0
  REQUIRE(seen_rows({.kind = MaskKind::tree, .tree = {tree, {3, 3}}}, 2, 3, 2) == Slots{0, 1, 2, 4});
}

TEST_CASE("a list of all seen rows has the bits of dense attention, with sink logits and without", "[unit]") {
  for (const std::int64_t rows : {1, 31, 32, 33, 65, 300}) {
    LayerClass c = uniform_shape(1, 2, 1, 24, Dtype::f32).classes.front();
    Random random(static_cast<std::uint64_t>(rows));
    Array q({2, 1, 24}), k({rows, 24}), v({rows, 24}), sinks({2}), dense({2, 1, 24}), listed({2, 1, 24});
    for (Array* a : {&q, &k, &v, &sinks})
      for (float& f : a->values()) f = random.normal();
    for (const bool sink : {false, true}) {
      c.attention_sink = sink;
      const StepInput step{.q = {}, .k = {}, .v = {}, .positions = {}, .sinks = sinks.view()};
      attend_new(c, 0, q.view(), k.view(), v.view(), {}, sinks.view(), dense.view());
      for (int h = 0; h < 2; ++h)
        attend_listed(c, q.view().row(h, 0), k.view(), v.view(), with_tail({}, 0, rows), sink_of(c, step, h), listed.view().row(h, 0));
      REQUIRE(listed.values() == dense.values());
    }
  }
}

TEST_CASE("the expected union lies between one list and all lists of a group, and within the context", "[unit]") {
  REQUIRE(expected_union(100_tok, 1000_tok, 1) == 100_tok);
  REQUIRE(expected_union(100_tok, 1000_tok, 2) == 190_tok);  // 1000 (1 - 0.9^2)
  REQUIRE(expected_union(1000_tok, 1000_tok, 8) == 1000_tok);
  REQUIRE(expected_union(2000_tok, 1000_tok, 8) == 1000_tok);
  REQUIRE(expected_union(1_tok, 1000000_tok, 4) <= 4_tok);
  for (const std::int64_t n : {1, 5, 50, 99}) {
    const Tokens u = expected_union(Tokens(n), 100_tok, 4);
    REQUIRE(u >= Tokens(n));
    REQUIRE(u <= std::min(Tokens(4 * n), 100_tok));
  }
}

TEST_CASE("layers are split by their index in the model", "[unit]") {
  LayerClass c = uniform_shape(5, 2, 2, 8).classes.front();
  c.readers = {5, 6};
  REQUIRE(layers_below(c, 2) == 2);
  REQUIRE(layers_from(c, 2).layers == std::vector<int>{2, 3, 4});
  REQUIRE(layers_from(c, 6).layers.empty());
  REQUIRE(layers_from(c, 6).readers == std::vector<int>{6});
}

TEST_CASE("windows, latent rows, learned indices and position biases have no lists of rows", "[unit]") {
  CacheShape shape = uniform_shape(1, 2, 1, 8);
  REQUIRE_FALSE(why_not_listed(shape));
  shape.classes.front().window = 128_tok;
  REQUIRE(*why_not_listed(shape) == "a sliding window of 128 tokens leaves nothing to select from; use full for such layers");
  shape.classes.front().window = 0_tok;
  shape.classes.front().kind = RowKind::latent;
  REQUIRE(*why_not_listed(shape) == "layers must cache keys and values for each kv head; latent and pooled rows are not covered");
  shape.classes.front().kind = RowKind::kv;
  shape.classes.front().index_top_k = 2048;
  REQUIRE(*why_not_listed(shape) == "layers with a learned index select tokens themselves");
  shape.classes.front().index_top_k = 0;
  shape.classes.front().alibi = true;
  REQUIRE(*why_not_listed(shape) == "layers with a linear position bias are not covered");
}

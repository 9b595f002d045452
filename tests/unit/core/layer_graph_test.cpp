#include "core/layer_graph.hpp"

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("dense bytes of Llama-3.1-8B are 131,072 a token", "[unit]") {
  const CacheShape shape = uniform_shape(32, 32, 8, 128);
  CHECK(dense_bytes(shape, 1_tok) == 131072_B);
  CHECK(dense_bytes(shape, 32768_tok) == 4_GiB);
  CHECK(dense_bytes(shape, 0_tok) == 0_B);
}

TEST_CASE("windows cut rows, latent rows count once, states do not grow", "[unit]") {
  CacheShape shape = uniform_shape(1, 8, 2, 64);
  shape.classes[0].window = 128_tok;
  CHECK(dense_bytes(shape, 100_tok).value == 100 * 2 * 128 * 2);
  CHECK(dense_bytes(shape, 1000_tok).value == 128 * 2 * 128 * 2);
  LayerClass latent{.kind = RowKind::latent, .q_heads = 128, .kv_heads = 1, .k_dim = 576, .v_dim = 512, .layers = {1, 2}};
  shape.classes.push_back(latent);
  CHECK(dense_bytes(shape, 10_tok).value == 10 * 2 * 128 * 2 + 10 * 576 * 2 * 2);
  shape.classes.push_back({.kind = RowKind::state, .state = 1000_B, .layers = {3}});
  CHECK(dense_bytes(shape, 10_tok).value == 10 * 2 * 128 * 2 + 10 * 576 * 2 * 2 + 1000);
  CHECK(!why_not(shape).has_value());
}

TEST_CASE("tensor-parallel ranks replicate kv heads once there are fewer than ranks, and latent rows always", "[unit]") {
  CacheShape shape = uniform_shape(2, 32, 8, 128);
  CHECK(shape_of_rank(shape, 4).classes[0].kv_heads == 2);
  CHECK(shape_of_rank(shape, 8).classes[0].kv_heads == 1);
  CHECK(shape_of_rank(shape, 16).classes[0].kv_heads == 1);
  CHECK(shape_of_rank(shape, 16).classes[0].q_heads == 2);
  CHECK(dense_bytes(shape_of_rank(shape, 16), 1_tok).value * 16 == 2 * dense_bytes(shape, 1_tok).value);
}

TEST_CASE("impossible shapes get one sentence", "[unit]") {
  CHECK(why_not(CacheShape{}) == "shape has no layer that caches rows");
  CHECK(why_not(uniform_shape(1, 3, 2, 64)) == "q_heads is 3, must be a multiple of kv_heads (2)");
  CHECK(why_not(uniform_shape(1, 2, 2, 0)) == "q_heads, kv_heads, k_dim, v_dim are 2, 2, 0, 0, must be positive");
  CacheShape twice = uniform_shape(2, 2, 2, 64);
  twice.classes.push_back(twice.classes[0]);
  CHECK(why_not(twice) == "layer 0 is in two classes");
  CHECK_THROWS_WITH(twice.class_of(9), "layer is 9, must be one of the 4 layers that cache rows");
}

TEST_CASE("a sub-shape keeps the chosen layers and drops empty classes", "[unit]") {
  const CacheShape shape = uniform_shape(6, 4, 2, 64);
  CHECK(shape_of_layers(shape, {1, 4}).classes[0].layers == std::vector<int>{1, 4});
  CHECK(shape_of_layers(shape, {}).classes.empty());
}

TEST_CASE("the readers of a class stay with its first owner, so parts count them once", "[unit]") {
  CacheShape shape = uniform_shape(4, 4, 2, 64);
  shape.classes[0].readers = {4, 5, 6};
  CHECK(shape_of_layers(shape, {0, 2}).classes[0].readers == std::vector<int>{4, 5, 6});
  CHECK(shape_of_layers(shape, {1, 3}).classes[0].readers.empty());
}

#include <cstring>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("key_rerotation: what a score keeps answers as a short text of it would", "[unit]") {
  const CacheShape shape = uniform_shape(1, 1, 1, 8, Dtype::f32, {.rotary_dim = 8});
  const MethodChoice moved = parse_choice("key_rerotation:score=knorm,budget=6"), plain = parse_choice("knorm:budget=6"), full = parse_choice("full");
  Scenario s{.method = moved.method, .shape = shape, .row = moved.row, .prompt = 20, .chunk = 20, .decode = 0, .seed = 3};
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  s.method = plain.method;
  s.row = plain.row;
  const auto unmoved = open_cache(s);
  run_prompt(*unmoved, s);
  const std::vector<NamedBuffer> buffers = cache->buffers();
  const auto& values = find_buffer(buffers, "layer0/v_rows/head0").bytes;
  CHECK(values == find_buffer(unmoved->buffers(), "layer0/v_rows/head0").bytes);  // the same tokens
  CHECK(find_buffer(buffers, "layer0/k_rows/head0").bytes != find_buffer(unmoved->buffers(), "layer0/k_rows/head0").bytes);
  const Inputs all = inputs_for(shape, 0, 0, 21, s.seed);
  const auto short_text = full.method->open(full.row, shape, {});
  Array out({1, 1, 8}), expected({1, 1, 8});
  const auto step = [&](KvCache& c, std::int64_t token, std::int64_t position, Array& to) {
    c.forward(0, {.q = all.q.view().slice(1, token, 1), .k = all.k.view().slice(1, token, 1), .v = all.v.view().slice(1, token, 1), .positions = {&position, {1}}},
              to.view());
  };
  std::int64_t slot = 0;
  for (std::int64_t t = 0; t < 20; ++t)
    if (slot < 6 && std::memcmp(values.data() + slot * 32, all.v.view().row(0, t).data(), 32) == 0) step(*short_text, t, slot++, out);
  REQUIRE(slot == 6);
  step(*short_text, 20, 6, expected);
  step(*cache, 20, 20, out);
  for (std::size_t i = 0; i < 8; ++i) CHECK(out.values()[i] == Approx(expected.values()[i]).margin(1e-5));
}

TEST_CASE("key_rerotation: a linear bias has no rotation, a window needs room", "[unit]") {
  const MethodChoice m = parse_choice("key_rerotation");
  CacheShape shape = uniform_shape(1, 2, 1, 64);
  shape.classes.front().alibi = true;
  CHECK(why_not(*m.method, m.row, shape) == "alibi is true: positions of a linear bias cannot be moved by rotation");
  const MethodChoice w = parse_choice("key_rerotation:score=snapkv,budget=10");
  CHECK(why_not(*w.method, w.row, uniform_shape(1, 2, 1, 64)) == "budget is 10, must be at least observation_window (64)");
}

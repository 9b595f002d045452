#include "reference/primitives/sides.hpp"

#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("sides: layers without keys and values of every token are refused with a sentence, as far as the method says", "[unit]") {
  CacheShape shape = uniform_shape(2, 4, 2, 64);
  CHECK(dim_of(shape.classes.front(), Side::value) == 64);
  CHECK(!why_not_sides("m", shape, kWholeRows));
  shape.classes.front().window = Tokens(9);
  CHECK(!why_not_sides("m", shape));
  CHECK(why_not_sides("m", shape, kWholeRows) == "a layer has a sliding window of 9 tokens, must have none: m keeps every row");
  shape.classes.front().window = Tokens(0);
  shape.classes.front().kind = RowKind::latent;
  CHECK(!why_not_sides("m", shape));
  CHECK(why_not_sides("m", shape, {.latent = false}) == "a layer keeps latent rows, must keep keys and values");
  shape.classes.front().kind = RowKind::pooled;
  CHECK(why_not_sides("m", shape) == "a layer keeps pooled rows, must keep keys and values or latent rows");
  shape.classes.front().kind = RowKind::kv;
  shape.classes.front().index_bytes = 128;
  CHECK(why_not_sides("m", shape) == "a layer keeps index rows of 128 bytes a token, must keep none: m codes keys and values alone");
}

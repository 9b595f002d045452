#include "reference/primitives/side_cache.hpp"

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// Layer 0 has a window of 8 tokens, layer 1 none.
Scenario windowed_and_global(const std::string& text, std::int64_t prompt) {
  const MethodChoice m = parse_choice(text);
  CacheShape shape = uniform_shape(2, 2, 1, 16, Dtype::bf16, {.rotary_dim = 16});
  shape.classes.push_back(shape.classes[0]);
  shape.classes[0].layers = {0};
  shape.classes[0].window = Tokens(8);
  shape.classes[1].layers = {1};
  return {.method = m.method, .shape = shape, .row = m.row, .prompt = prompt, .chunk = prompt, .decode = 4, .seed = 7};
}

}  // namespace

TEST_CASE("a crop that would bring back rows of a sliding window is refused before any layer changes", "[unit]") {
  for (const std::string text : {"full", "fp8_kv", "int8_pth"}) {
    CAPTURE(text);
    const Scenario s = windowed_and_global(text, 12);
    const auto cache = open_cache(s);
    run_prompt(*cache, s);
    const std::uint64_t before = digest(cache->buffers());
    for (const std::int64_t length : {0, 7, 8, 9, 11})
      CHECK_THROWS_WITH(cache->crop(Tokens(length)),
                        cat("crop to ", length, " of 12 tokens: the sliding window of layer 0 has dropped the tokens that would come back"));
    cache->crop(Tokens(12));
    cache->crop(Tokens(40));
    CHECK(digest(cache->buffers()) == before);
    CHECK_THROWS_WITH(cache->crop(Tokens(-1)), "length is -1, must be >= 0");
  }
}

TEST_CASE("while the window has dropped nothing, windowed and global layers crop alike", "[unit]") {
  const Scenario s = windowed_and_global("full", 6);
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  const std::uint64_t before = digest(cache->buffers());
  const auto two = run_decode(*cache, s, 0, 2);
  CHECK(cache->kept(0, 0) == 8_tok);
  cache->crop(Tokens(6));
  CHECK(digest(cache->buffers()) == before);
  CHECK(run_decode(*cache, s, 0, 2) == two);
  run_decode(*cache, s, 2, 1);
  CHECK_THROWS_AS(cache->crop(Tokens(8)), Unsupported);
}

TEST_CASE("a loaded full window learns the length of its text from the next step", "[unit]") {
  const Scenario s = windowed_and_global("full", 12);
  const auto cache = open_cache(s), loaded = open_cache(s);
  run_prompt(*cache, s);
  loaded->load(cache->buffers());
  CHECK_THROWS_WITH(loaded->crop(Tokens(12)), "crop: layer 0 was loaded with a full window and learns the length of its text from the next step");
  CHECK(digest(loaded->buffers()) == digest(cache->buffers()));
  CHECK(run_decode(*loaded, s, 0, 1) == run_decode(*cache, s, 0, 1));
  loaded->crop(Tokens(13));
  CHECK_THROWS_AS(loaded->crop(Tokens(12)), Unsupported);

  const Scenario short_text = windowed_and_global("full", 5);
  const auto part = open_cache(short_text), again = open_cache(short_text);
  run_prompt(*part, short_text);
  again->load(part->buffers());  // less than the window: nothing can have been dropped
  again->crop(Tokens(3));
  CHECK(again->kept(0, 0) == 3_tok);
  CHECK(again->kept(1, 0) == 3_tok);
}

TEST_CASE("a refused load leaves every layer as it was", "[unit]") {
  const Scenario s = windowed_and_global("full", 5), longer = windowed_and_global("full", 12);
  const auto cache = open_cache(s), other = open_cache(longer);
  run_prompt(*cache, s);
  run_prompt(*other, longer);
  const std::uint64_t before = digest(cache->buffers());
  auto saved = other->buffers();
  for (NamedBuffer& b : saved)
    if (b.name == "layer1/v_rows/head0") b.bytes.resize(b.bytes.size() - 32);
  CHECK_THROWS_WITH(cache->load(saved), "layer 1 has 12 keys and 11 values, must be as many");
  CHECK(digest(cache->buffers()) == before);
  saved = other->buffers();
  for (NamedBuffer& b : saved)
    if (b.name.starts_with("layer0/")) b.bytes.resize(9 * 32);
  CHECK_THROWS_WITH(cache->load(saved), "layer 0 has 9 rows, must have at most its window (8)");
  CHECK(digest(cache->buffers()) == before);
  cache->load(other->buffers());
  CHECK(digest(cache->buffers()) == digest(other->buffers()));
}

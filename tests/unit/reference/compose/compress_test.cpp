#include "reference/compose/compress.hpp"

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

namespace {

Array ramp(std::int64_t heads, std::int64_t tokens, std::int64_t dim) {
  Array a({heads, tokens, dim});
  for (std::size_t i = 0; i < a.values().size(); ++i) a.values()[i] = static_cast<float>(static_cast<int>(i * 37 % 64) - 32) / 32.0F;
  return a;
}

}  // namespace

TEST_CASE("compressing with the full cache keeps every byte and errs nowhere, with and without RoPE", "[unit]") {
  const Array q = ramp(4, 33, 32), k = ramp(2, 33, 32), v = ramp(2, 33, 32);
  for (const int rotary_dim : {0, 32}) {
    const CacheShape shape = uniform_shape(1, 4, 2, 32, Dtype::bf16, {.rotary_dim = rotary_dim});
    const Compression c = compress(Recipe::parse("full"), shape, {.k = k.view(), .v = v.view(), .q = q.view()});
    REQUIRE(c.ledger.total().value == 2 * 33 * 64 * 2);
    REQUIRE(c.dense == c.ledger.total());
    REQUIRE(c.bits_per_value == 16.0);
    REQUIRE(c.size_factor == 1.0);
    REQUIRE(c.k_rel_error == 0.0);
    REQUIRE(c.attention_rel_error == 0.0);
    REQUIRE(c.probes == 8);
  }
}

TEST_CASE("one token has no earlier token to compress, so no attention error", "[unit]") {
  const Array q = ramp(2, 1, 32), k = ramp(2, 1, 32), v = ramp(2, 1, 32);
  const CacheShape shape = uniform_shape(1, 2, 2, 32);
  const Compression c = compress(Recipe::parse("full"), shape, {.k = k.view(), .v = v.view(), .q = q.view()});
  REQUIRE(c.probes == 0);
  REQUIRE(!c.attention_rel_error);
  REQUIRE_THROWS_AS(compress(Recipe::parse("full"), shape, {.k = k.view().slice(1, 0, 0), .v = v.view().slice(1, 0, 0), .q = {}}), InvalidArgument);
}

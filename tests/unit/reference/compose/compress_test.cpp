#include "reference/compose/compress.hpp"

#include <cmath>

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

TEST_CASE("rows that a cache gives back are those whose error is reported", "[unit]") {
  const Array q = ramp(2, 40, 32), k = ramp(2, 40, 32), v = ramp(2, 40, 32);
  const CacheShape shape = uniform_shape(1, 2, 2, 32, Dtype::bf16, {.rotary_dim = 32});
  const Compression plain = compress(Recipe::parse("full"), shape, {.k = k.view(), .v = v.view(), .q = {}});
  REQUIRE(plain.v_decoded.value().values() == v.values());  // bf16 holds sixty-fourths of 32 exactly
  const Compression coded = compress(Recipe::parse("int8_pth"), shape, {.k = k.view(), .v = v.view(), .q = {}});
  REQUIRE(coded.k_decoded.value().dims() == std::vector<std::int64_t>{2, 40, 32});
  REQUIRE(!coded.decoded_before_rope);
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < v.values().size(); ++i) {
    const double want = static_cast<double>(v.values()[i]), d = static_cast<double>(coded.v_decoded->values()[i]) - want;
    difference += d * d;
    norm += want * want;
  }
  REQUIRE(coded.v_rel_error.value() == Approx(std::sqrt(difference / norm)));
  REQUIRE(compress(Recipe::parse("kvquant"), shape, {.k = k.view(), .v = v.view(), .q = {}}).decoded_before_rope);
  REQUIRE(compress(Recipe::parse("think:observation_window=8"), shape, {.k = k.view(), .v = v.view(), .q = q.view()}).k_rel_error.value() > 0);  // channels by what the queries see
  REQUIRE(!compress(Recipe::parse("snapkv:budget=16,observation_window=8"), shape, {.k = k.view(), .v = v.view(), .q = q.view()}).k_decoded);
}

TEST_CASE("one token has no earlier token to compress, so no attention error", "[unit]") {
  const Array q = ramp(2, 1, 32), k = ramp(2, 1, 32), v = ramp(2, 1, 32);
  const CacheShape shape = uniform_shape(1, 2, 2, 32);
  const Compression c = compress(Recipe::parse("full"), shape, {.k = k.view(), .v = v.view(), .q = q.view()});
  REQUIRE(c.probes == 0);
  REQUIRE(!c.attention_rel_error);
  REQUIRE_THROWS_AS(compress(Recipe::parse("full"), shape, {.k = k.view().slice(1, 0, 0), .v = v.view().slice(1, 0, 0), .q = {}}), InvalidArgument);
}

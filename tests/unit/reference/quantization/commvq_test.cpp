#include <cmath>

#include "core/errors.hpp"
#include "core/rope.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/quantization/commvq/codes.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"
#include "tests/support/side_rows.hpp"
#include "tests/support/trained_inputs.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("commvq: a codeword by hand, and a rotation before or after", "[unit]") {
  // Number 0 of the only pair is 0.5 - 0.25i, number 1 is 0.1 + 0.3i: word (0, 1) is z_0 + i z_1 = 0.2 - 0.15i.
  const std::vector<float> z{0.5F, -0.25F, 0.1F, 0.3F};
  const commvq::KeyBook book{{z.data(), {1, 4, 1}}};
  std::vector<float> key(2);
  const std::vector<std::uint32_t> word{1};
  commvq::decode_key(book, word, key);
  CHECK(key[0] == Approx(0.2));
  CHECK(key[1] == Approx(-0.15));
  const double turned = key[0] * std::cos(0.7) - key[1] * std::sin(0.7), other = key[0] * std::sin(0.7) + key[1] * std::cos(0.7);
  CHECK(turned == Approx(0.2496011).epsilon(1e-6));
  CHECK(other == Approx(0.0141172).epsilon(1e-5));
  CHECK(commvq::encode_key(book, key) == word);
}

TEST_CASE("commvq: the error function agrees with the C library", "[unit]") {
  for (double x = -7; x <= 7; x += 0.01) REQUIRE(commvq::erf_of(x) == Approx(std::erf(x)).margin(2e-15));
}

TEST_CASE("commvq: 512 bytes a token and layer of Llama-3.1-8B beside its codebooks", "[unit]") {
  const MethodChoice m = parse_choice("commvq");
  const CacheShape shape = uniform_shape(1, 32, 8, 128, Dtype::bf16, {.rotary_dim = 128});
  const auto bytes = [&](std::int64_t n) { return formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(n)}).total().value; };
  CHECK(bytes(1280) - bytes(1152) == 128 * 512);
  CHECK(1 - 512.0 / 4096 == 0.875);
  CHECK(bytes(0) == 2 * 21 * 64 * 1024 + 2 * (2048 * 1024 + 1024));
}

TEST_CASE("commvq: opens with its file alone, and rows stay plain until a flush", "[unit]") {
  const MethodChoice m = parse_choice("commvq:stages=2,entries=4,residual_window=8");
  const CacheShape shape = uniform_shape(1, 2, 1, 8, Dtype::bf16, {.rotary_dim = 8});
  CHECK_THROWS_AS(m.method->open(m.row, shape, {}), Unsupported);
  TensorMap trained = trained_inputs(*m.method, m.row, shape, 0, 3);
  Scenario s{.method = m.method, .shape = shape, .row = m.row, .prompt = 7, .chunk = 7, .decode = 0, .seed = 5};
  const auto cache = m.method->open(m.row, shape, {.trained = &trained});
  Scenario plain = s;
  plain.method = parse_choice("full").method;
  plain.row = {};
  const auto full = open_cache(plain);
  CHECK(run_prompt(*cache, s) == run_prompt(*full, plain));
  run_decode(*cache, s, 0, 1);
  const std::vector<NamedBuffer> buffers = cache->buffers();
  CHECK(find_buffer(buffers, "layer0/k_indices/head0").bytes.size() == 8);  // two words of four bits a token
  trained["layer0.value_b1"].dims = {5};
  CHECK_THROWS_WITH(m.method->open(m.row, shape, {.trained = &trained}), "tensor \"layer0.value_b1\" is [5], must be [16]");
  CHECK(refusal("commvq:entries=5", 64) == "entries is 5, must be a power of two: a codeword has whole bits");
}

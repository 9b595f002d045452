#include <cmath>
#include <limits>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// The stored bytes of one head of one side that was given `x` as one row, and its scale.
struct Fp8Rows {
  std::vector<int> codes;
  float scale = 0;
  std::vector<float> back;
};

Fp8Rows store(const std::string& recipe, const std::vector<float>& x, Side side = Side::key, Dtype dtype = Dtype::f32) {
  const MethodChoice m = parse_choice(recipe);
  const auto dim = static_cast<std::int64_t>(x.size());
  const CacheShape shape = uniform_shape(1, 1, 1, static_cast<int>(dim), dtype);
  const auto s = m.method->open_side(m.row, shape.classes.front(), 0, side, dtype);
  s->append({x.data(), {1, 1, dim}});
  std::vector<NamedBuffer> buffers;
  s->buffers("", buffers);
  Fp8Rows out;
  for (const std::byte b : find_buffer(buffers, "codes/head0").bytes) out.codes.push_back(std::to_integer<int>(b));
  num::load(Dtype::f32, find_buffer(buffers, "scale").bytes, std::span(&out.scale, 1));
  Array row({1, dim});
  s->read(0, 0, row.view());
  out.back = row.values();
  return out;
}

}  // namespace

TEST_CASE("fp8_kv: E4M3 codes of the tie and edge vectors", "[unit]") {
  const Fp8Rows s = store("fp8_kv", {0x1p-10F, 1.5F * 0x1p-10F, 0x1p-7F, 0.1F, 1.0625F, 1.1875F, 3.3F, 17, 19, 432, 464, 500, 1e9F, -0.0625F});
  REQUIRE(s.codes == std::vector<int>{0x00, 0x01, 0x04, 0x1D, 0x38, 0x3A, 0x45, 0x58, 0x5A, 0x7E, 0x7E, 0x7E, 0x7E, 0x98});
  REQUIRE(s.back == std::vector<float>{0, 0x1p-9F, 0x1p-7F, 0.1015625F, 1, 1.25F, 3.25F, 16, 20, 448, 448, 448, 448, -0.0625F});
}

TEST_CASE("fp8_kv: E5M2 codes of the tie and edge vectors", "[unit]") {
  const Fp8Rows s = store("fp8_kv:format=e5m2", {0x1p-17F, 0.1F, 1.125F, 1.375F, 3.3F, 60000, 65504});
  REQUIRE(s.codes == std::vector<int>{0x00, 0x2E, 0x3C, 0x3E, 0x43, 0x7B, 0x7B});
  REQUIRE(s.back == std::vector<float>{0, 0.09375F, 1, 1.5F, 3.5F, 57344, 57344});
}

TEST_CASE("fp8_kv: values are divided by the scale of their side, and multiplied back", "[unit]") {
  const Fp8Rows key = store("fp8_kv:k_scale=2", {1.0F, 800.0F});
  REQUIRE(key.codes == std::vector<int>{0x30, 0x7C});  // 0.5; 400 ties between 384 and 416 to the even 384
  REQUIRE(key.scale == 2.0F);
  REQUIRE(key.back == std::vector<float>{1.0F, 768.0F});
  REQUIRE(store("fp8_kv:k_scale=2", {1.0F}, Side::value).codes == std::vector<int>{0x38});
  // 0.5 * 0.3 in float32 is 0.15000000596; a bf16 cache hands on 0.150390625.
  REQUIRE(store("fp8_kv:v_scale=0.3", {0.15F}, Side::value, Dtype::bf16).back == std::vector<float>{0.150390625F});
}

TEST_CASE("fp8_kv: error bounds at scale 1", "[unit]") {
  Random random(4);
  std::vector<float> x(4000);
  for (float& f : x) f = random.normal() * 20.0F;
  for (std::size_t i = 0; i < 1000; ++i) x[i] *= 0x1p-14F;
  const Fp8Rows s = store("fp8_kv", x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float error = std::fabs(s.back[i] - x[i]), size = std::fabs(x[i]);
    REQUIRE(error <= (size >= 0x1p-6F ? size * 0x1p-4F : 0x1p-10F));
  }
}

TEST_CASE("fp8_kv: calibration takes the largest value of the first call alone, per layer and side", "[unit]") {
  const Fp8Rows key = store("fp8_kv:calibrate=true", {-50.0F, 25.0F});
  REQUIRE(key.scale == 0.25F);
  REQUIRE(key.back[0] == -48.0F);  // 200 between 192 and 208: ties to the even code, 192
  REQUIRE(store("fp8_kv:calibrate=true", {-50.0F, 25.0F}, Side::value).scale == 0.5F);
  REQUIRE(store("fp8_kv:calibrate=true", {0.0F, 0.0F}).scale == 1.0F);

  const MethodChoice m = parse_choice("fp8_kv:calibrate=true");
  const CacheShape shape = uniform_shape(1, 1, 1, 2, Dtype::f32);
  const auto s = m.method->open_side(m.row, shape.classes.front(), 0, Side::key, Dtype::f32);
  const std::vector<float> first{50.0F, 1.0F}, later{5000.0F, 1.0F};
  s->append({first.data(), {1, 1, 2}});
  s->append({later.data(), {1, 1, 2}});
  Array rows({2, 2});
  s->read(0, 0, rows.view());
  REQUIRE(rows.view()(1, 0) == 112.0F);  // 448 * 0.25: what does not fit saturates
}

TEST_CASE("fp8_kv: half the bytes of a 16-bit cache and one float32 a layer and side", "[unit]") {
  const MethodChoice m = parse_choice("fp8_kv");
  const CacheShape shape = uniform_shape(3, 4, 2, 64, Dtype::bf16, {.rotary_dim = 64});
  Scenario s{.method = m.method, .shape = shape, .row = m.row, .prompt = 33, .chunk = 33, .decode = 0, .seed = 1};
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  const Ledger counted = count_ledger(cache->buffers());
  REQUIRE(counted.of("codes", Side::key).value == 3 * 33 * 2 * 64);
  REQUIRE(counted.of("codes", Side::value).value == 3 * 33 * 2 * 64);
  REQUIRE(counted.of("scales", Side::key).value == 12);
  REQUIRE(counted.of("scales", Side::value).value == 12);
}

TEST_CASE("fp8_kv: latent rows are coded whole; pooled rows are refused", "[unit]") {
  CacheShape shape = uniform_shape(1, 4, 1, 32, Dtype::bf16);
  LayerClass& c = shape.classes.front();
  c.kind = RowKind::latent;
  c.v_dim = 24;
  const MethodChoice m = parse_choice("fp8_kv");
  REQUIRE(why_not(*m.method, m.row, shape) == std::nullopt);
  Scenario s{.method = m.method, .shape = shape, .row = m.row, .prompt = 5, .chunk = 5, .decode = 0, .seed = 1};
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  REQUIRE(count_ledger(cache->buffers()).total().value == 5 * 32 + 4);
  c.kind = RowKind::pooled;
  c.pool = 4;
  REQUIRE(why_not(*m.method, m.row, shape) == "a layer keeps pooled rows, must keep keys and values or latent rows");
}

TEST_CASE("fp8_kv: a scale of another size is refused on load", "[unit]") {
  const MethodChoice m = parse_choice("fp8_kv");
  Scenario s{.method = m.method, .shape = uniform_shape(1, 1, 1, 8), .row = m.row, .prompt = 3, .chunk = 3, .decode = 0, .seed = 1};
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  auto saved = cache->buffers();
  for (NamedBuffer& b : saved)
    if (b.name == "layer0/k_scale") b.bytes.pop_back();
  REQUIRE_THROWS_WITH(cache->load(saved), "buffer layer0/k_scale has 3 bytes, must have 4");
}

TEST_CASE("fp8_kv: a scale that is not finite and positive is refused on load", "[unit]") {
  const MethodChoice m = parse_choice("fp8_kv");
  const LayerClass c{.q_heads = 1, .kv_heads = 1, .k_dim = 4, .v_dim = 4, .layers = {0}};
  const auto store = m.method->open_side(m.row, c, 0, Side::key, Dtype::f32);
  store->append(Array({1, 2, 4}, 1.0F).view());
  std::vector<NamedBuffer> before, after;
  store->buffers("k_", before);
  for (const float scale : {0.0F, -1.0F, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    auto saved = before;
    for (NamedBuffer& b : saved)
      if (b.name == "k_scale") num::store(Dtype::f32, std::span(&scale, 1), b.bytes);
    CHECK_THROWS_WITH(store->load("k_", saved), cat("buffer k_scale holds ", scale, ", must be finite and above 0"));
  }
  store->buffers("k_", after);
  CHECK(test::digest(after) == test::digest(before));
}

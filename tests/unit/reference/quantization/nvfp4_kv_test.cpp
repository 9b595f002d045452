#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/side_rows.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("nvfp4_kv: by hand, one block under global scale 1", "[unit]") {
  const StoredSide s = store_rows("nvfp4_kv", Side::key, 16, {0, .1F, -.2F, .35F, .5F, -.75F, 1, 1.3F, -1.6F, 2, 2.5F, -3, .05F, -.02F, 4.4F, -.6F});
  CHECK(s.bytes("scales") == std::vector<int>{0x34});  // 0.75
  CHECK(s.bytes("codes") == std::vector<int>{0x00, 0x19, 0xA1, 0x33, 0x5C, 0xE5, 0x80, 0xA7});
  CHECK(s.decoded == std::vector<float>{0, 0, -.375F, .375F, .375F, -.75F, 1.125F, 1.125F, -1.5F, 2.25F, 2.25F, -3, 0, -0.0F, 4.5F, -.75F});
  CHECK(s.f32("global_scale") == std::vector<float>{1.0F});
}

TEST_CASE("nvfp4_kv: global scales come from parameters or from the first call", "[unit]") {
  std::vector<float> x(16, 0.0F);
  x[0] = 896.0F;
  CHECK(store_rows("nvfp4_kv:calibrate=absmax_448", Side::key, 16, x).f32("global_scale") == std::vector<float>{2.0F});
  CHECK(store_rows("nvfp4_kv:calibrate=absmax_2688", Side::value, 16, x).f32("global_scale") == std::vector<float>{896.0F / 2688.0F});
  CHECK(store_rows("nvfp4_kv:k_scale=4", Side::key, 16, x).f32("global_scale") == std::vector<float>{4.0F});
  CHECK(store_rows("nvfp4_kv:calibrate=absmax_448", Side::key, 16, std::vector<float>(16, 0.0F)).f32("global_scale") == std::vector<float>{1.0F});
  // Without calibration a block of large values saturates its scale at 448: 448 * 6.
  x[0] = 1e5F;
  CHECK(store_rows("nvfp4_kv", Side::key, 16, x).decoded[0] == 2688.0F);
}

TEST_CASE("nvfp4_kv: a block far below the global scale decodes to zeros", "[unit]") {
  const StoredSide s = store_rows("nvfp4_kv:k_scale=256", Side::key, 16, std::vector<float>(16, 1.0F));
  CHECK(s.bytes("scales") == std::vector<int>{0});
  CHECK(s.decoded == std::vector<float>(16, 0.0F));
}

TEST_CASE("nvfp4_kv: 4.5 bits a value and 8 bytes a layer; refusals; impossible saved state", "[unit]") {
  const MethodChoice m = parse_choice("nvfp4_kv");
  const CacheShape shape = uniform_shape(3, 4, 2, 128, Dtype::bf16, {.rotary_dim = 128});
  CHECK(formula_ledger(*m.method, m.row, shape, {.prompt = Tokens(10)}).total().value == 3 * (10 * 2 * 2 * 72 + 8));
  CHECK(refusal("nvfp4_kv", 40) == "head_dim is 40, must be a multiple of 16, the block of NVFP4");
  const auto cache = m.method->open(m.row, shape, {});
  CHECK_NOTHROW(cache->load(cache->buffers()));
  const LayerClass c{.q_heads = 1, .kv_heads = 1, .k_dim = 16, .v_dim = 16, .layers = {0}};
  const auto store = m.method->open_side(m.row, c, 0, Side::key, Dtype::f32);
  store->append(Array({1, 1, 16}, 1.0F).view());
  std::vector<NamedBuffer> saved;
  store->buffers("k_", saved);
  for (NamedBuffer& b : saved)
    if (b.component == "global_scale") b.bytes.assign(4, std::byte{0});
  CHECK_THROWS_WITH(store->load("k_", saved), "k_state: global scale is 0, must be finite and above 0");
}

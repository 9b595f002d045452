#include "core/errors.hpp"
#include "reference/coding/mustafar/tiles.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

std::vector<float> pruned(double sparsity) {
  std::vector<float> x{0.5F, -3, 0.1F, 2, -0.2F, 1, -1.5F, 0.3F};
  mustafar_tiles::prune(x, sparsity);
  return x;
}

}  // namespace

TEST_CASE("mustafar: one more value stays than the sparsity says; what equals the threshold stays", "[unit]") {
  CHECK(pruned(0.5) == std::vector<float>{0.5F, -3, 0, 2, 0, 1, -1.5F, 0});   // the fourth smallest is 0.5
  CHECK(pruned(0.7) == std::vector<float>{0, -3, 0, 2, 0, 1, -1.5F, 0});      // the fifth smallest is 1
  CHECK(pruned(0) == std::vector<float>{0.5F, -3, 0.1F, 2, -0.2F, 1, -1.5F, 0.3F});
  CHECK(128 - mustafar_tiles::pruned_rank(0.7, 128) + 1 == 40);
  CHECK(128 - mustafar_tiles::pruned_rank(0.5, 128) + 1 == 65);
}

TEST_CASE("mustafar: a tile's highest bit is its first element, its values are filled up to eight", "[unit]") {
  mustafar_tiles::TileCoder coder(1, 64, Side::value, Dtype::f16, 0);
  Array rows({1, 64, 64});
  rows.view()(0, 0, 0) = 1;
  rows.view()(0, 0, 3) = 2;
  rows.view()(0, 0, 63) = 3;
  coder.append(rows.view());
  std::vector<NamedBuffer> buffers;
  coder.buffers("", buffers);
  const auto& map = find_buffer(buffers, "bitmaps/head0").bytes;
  CHECK(std::to_integer<int>(map[7]) == 0x90);  // little-endian word 0x9000000000000001
  CHECK(std::to_integer<int>(map[0]) == 0x01);
  CHECK(std::to_integer<int>(find_buffer(buffers, "offsets/head0").bytes[4]) == 4);  // 8 halves are 4 words
  CHECK(find_buffer(buffers, "values/head0").bytes.size() == 16);
  Array back({64, 64});
  coder.read(0, 0, back.view());
  CHECK(back.values() == std::vector<float>(rows.values()));
}

TEST_CASE("mustafar: rows are pruned in flushes behind the window", "[unit]") {
  const MethodChoice m = parse_choice("mustafar");
  const LayerClass c{.q_heads = 1, .kv_heads = 1, .k_dim = 128, .v_dim = 128, .layers = {0}};
  const auto store = m.method->open_side(m.row, c, 0, Side::key, Dtype::f16);
  Array rows({1, 287, 128});
  Random random(3);
  for (float& f : rows.values()) f = random.normal();
  store->append(rows.view());
  store->settle(true);
  const auto coded = [&] {
    std::vector<NamedBuffer> buffers;
    store->buffers("", buffers);
    return count_ledger(buffers).of("bitmaps", Side::key).value / 8 * 64 / 128;
  };
  CHECK(coded() == 0);  // 287 - 32 is below 256
  store->append(rows.view().slice(1, 0, 1));
  store->settle(true);
  CHECK(coded() == 256);
  CHECK_THROWS_AS(store->check_crop(Tokens(287)), Unsupported);
}

TEST_CASE("mustafar: 0.461 of dense at 70% and 0.656 at 50%, as the sheet's mean filling says", "[unit]") {
  for (const auto& [sparsity, want] : {std::pair{0.7, 0.461}, std::pair{0.5, 0.656}}) {
    const MethodChoice m = parse_choice(cat("mustafar:k_sparsity=", sparsity, ",v_sparsity=", sparsity, ",residual_window=0"));
    const LayerClass c{.q_heads = 1, .kv_heads = 1, .k_dim = 128, .v_dim = 128, .layers = {0}};
    const auto store = m.method->open_side(m.row, c, 0, Side::key, Dtype::f16);
    Array rows({1, 1024, 128});
    Random random(3);
    for (float& f : rows.values()) f = random.normal();
    store->append(rows.view());
    store->settle(true);
    std::vector<NamedBuffer> buffers;
    store->buffers("", buffers);
    // 8 + 4 bytes and 64 times 40 (65) of 128 values with 3.5 fillers, of 128 bytes a tile.
    const double counted = static_cast<double>(count_ledger(buffers).total().value) / (1024 * 128 * 2);
    CHECK(std::abs(counted - want) < 0.003);
  }
}

TEST_CASE("mustafar: what tiles cannot hold is refused", "[unit]") {
  const auto why = [](const std::string& recipe, int dim) {
    const MethodChoice m = parse_choice(recipe);
    return why_not(*m.method, m.row, uniform_shape(1, 2, 1, dim, Dtype::bf16));
  };
  CHECK(why("mustafar:flush=96", 64) == "flush is 96, must be a multiple of 64: tiles hold 64 tokens");
  CHECK(why("mustafar", 96) == "head_dim is 96, must be a multiple of 64: tiles hold 64 channels");
}

TEST_CASE("mustafar: a bitmap that disagrees with the offsets is refused", "[unit]") {
  mustafar_tiles::TileCoder coder(1, 64, Side::key, Dtype::f16, 0.5);
  coder.append(Array({1, 64, 64}, 1.0F).view());
  std::vector<NamedBuffer> buffers;
  coder.buffers("k_", buffers);
  find_buffer(buffers, "k_bitmaps/head0");
  for (NamedBuffer& b : buffers)
    if (b.name == "k_bitmaps/head0") b.bytes[0] = std::byte{0};
  CHECK_THROWS_WITH(coder.fresh()->load("k_", buffers),
                    "buffers k_bitmaps/head0, offsets and values must agree tile by tile, in whole blocks of 64 rows, as many in every head");
}

#include "tests/catch.hpp"
#include "tests/support/side_rows.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("fp8_pth: by hand, the largest value is 448 steps", "[unit]") {
  const StoredSide s = store_rows("fp8_pth", Side::key, 4, {448, -17, 19, 0.0625F});
  CHECK(s.f32("scales") == std::vector<float>{1.0F});
  CHECK(s.bytes("codes") == std::vector<int>{0x7E, 0xD8, 0x5A, 0x18});  // 17 and 19 are ties: 16 and 20
  CHECK(s.decoded == std::vector<float>{448, -16, 20, 0.0625F});
  CHECK(store_rows("fp8_pth:format=e5m2", Side::key, 4, {57344, 1.125F, 0, 0}).decoded == std::vector<float>{57344, 1, 0, 0});
}

TEST_CASE("fp8_pth: zeros decode to zeros under the smallest scale", "[unit]") {
  const StoredSide s = store_rows("fp8_pth", Side::value, 4, {0, 0, -0.0F, 0});
  CHECK(s.f32("scales") == std::vector<float>{1e-6F});
  CHECK(s.decoded == std::vector<float>{0, 0, 0, 0});
}

TEST_CASE("fp8_pth: 8.25 bits a value at head_dim 128", "[unit]") {
  CHECK(bits_per_value("fp8_pth", 128, 64) == 8.25);
  CHECK(refusal("fp8_pth", 64, RowKind::pooled) == "a layer keeps pooled rows, must keep keys and values or latent rows");
}

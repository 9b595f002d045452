#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/side_rows.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("llamacpp_kv: bits of a value are those of the block structs", "[unit]") {
  for (const auto& [type, bits] : {std::pair{"q8_0", 8.5}, {"q5_1", 6.0}, {"q5_0", 5.5}, {"q4_1", 5.0}, {"q4_0", 4.5}, {"iq4_nl", 4.5}}) {
    CAPTURE(type);
    CHECK(bits_per_value(cat("llamacpp_kv:k_type=", type, ",v_type=", type), 128, 100) == bits);
  }
  CHECK(bits_per_value("llamacpp_kv:k_type=q8_0,v_type=q4_0", 128, 100) == 6.5);
}

TEST_CASE("llamacpp_kv: by hand, the sides have their own types", "[unit]") {
  std::vector<float> row(32, 0.0F);
  row[1] = 127.0F;
  row[2] = -63.6F;
  const StoredSide key = store_rows("llamacpp_kv:v_type=q4_0", Side::key, 32, row), value = store_rows("llamacpp_kv:v_type=q4_0", Side::value, 32, row);
  CHECK(key.bytes("blocks").size() == 34);
  CHECK(std::vector<float>(key.decoded.begin(), key.decoded.begin() + 3) == std::vector<float>{0, 127, -64});
  CHECK(value.bytes("blocks").size() == 18);
  CHECK(value.decoded[1] == 127.0F);                 // -8 steps of -15.875
  CHECK(value.decoded[2] == -4.0F * 15.875F);        // 4 steps of -15.875
}

TEST_CASE("llamacpp_kv: rotation spreads one channel over its block and is undone on the way out", "[unit]") {
  std::vector<float> row(64, 0.0F);
  row[5] = 8.0F;  // every rotated value is 8 / sqrt(64) = 1 in magnitude
  const StoredSide on = store_rows("llamacpp_kv", Side::key, 64, row), off = store_rows("llamacpp_kv:rotation=false", Side::key, 64, row);
  for (std::size_t i = 2; i < 34; ++i) CHECK((on.bytes("blocks")[i] == 127 || on.bytes("blocks")[i] == 256 - 127));
  CHECK(off.bytes("blocks")[2 + 5] == 127);
  CHECK(off.bytes("blocks")[2 + 6] == 0);
  CHECK(on.decoded[5] == Approx(8.0F).epsilon(1e-3));
  CHECK(on.decoded[6] == Approx(0.0F).margin(1e-6));
  // 96 channels are not a multiple of 64: rows stay as they are.
  std::vector<float> wide(96, 0.0F);
  wide[5] = 8.0F;
  CHECK(store_rows("llamacpp_kv", Side::key, 96, wide).bytes("blocks")[2 + 6] == 0);
}

TEST_CASE("llamacpp_kv: values beyond fp16 saturate and stay finite", "[unit]") {
  std::vector<float> row(32, 0.0F);
  row[0] = 1e30F;
  row[1] = -1e30F;
  for (const char* type : {"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"}) {
    CAPTURE(type);
    const StoredSide s = store_rows(cat("llamacpp_kv:k_type=", type), Side::key, 32, row);
    CHECK(s.decoded[0] == Approx(65504.0F).epsilon(0.15));
    CHECK(s.decoded[1] == Approx(-65504.0F).epsilon(0.15));
  }
}

TEST_CASE("llamacpp_kv: refuses widths that are no whole blocks", "[unit]") {
  CHECK(refusal("llamacpp_kv", 80) == "head_dim is 80, must be a multiple of 32: a block has 32 values");
  CHECK(refusal("llamacpp_kv", 64, RowKind::pooled) == "a layer keeps pooled rows, must keep keys and values or latent rows");
  CHECK(refusal("llamacpp_kv", 64, RowKind::kv, Tokens(16)) == "");
}

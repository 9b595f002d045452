#include "tests/catch.hpp"
#include "tests/support/side_rows.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {
std::vector<float> example() {
  std::vector<float> x{0, .1F, -.2F, .35F, .5F, -.75F, 1, 1.3F, -1.6F, 2, 2.5F, -3, .05F, -.02F, 4.4F, -.6F};
  x.resize(32, 0.0F);
  return x;
}
}  // namespace

TEST_CASE("mxfp4: by hand, one block with scale 1", "[unit]") {
  const StoredSide s = store_rows("mxfp4", Side::key, 32, example());
  CHECK(s.bytes("scales") == std::vector<int>{127});
  const std::vector<int> codes = s.bytes("codes");
  CHECK(std::vector<int>(codes.begin(), codes.begin() + 8) == std::vector<int>{0x00, 0x18, 0xA1, 0x32, 0x4B, 0xD4, 0x80, 0x96});
  CHECK(std::vector<float>(s.decoded.begin(), s.decoded.begin() + 8) == std::vector<float>{0, 0, -0.0F, .5F, .5F, -1, 1, 1.5F});
}

TEST_CASE("mxfp4: the OCP rule clips between 6 and 8, the round-up rule does not", "[unit]") {
  std::vector<float> x(32, 0.0F);
  x[0] = 7.9F;
  const StoredSide ocp = store_rows("mxfp4", Side::value, 32, x), up = store_rows("mxfp4:scale_rule=round_up", Side::value, 32, x);
  CHECK(ocp.bytes("scales") == std::vector<int>{127});
  CHECK(ocp.decoded[0] == 6.0F);
  CHECK(up.bytes("scales") == std::vector<int>{128});
  CHECK(up.decoded[0] == 8.0F);
}

TEST_CASE("mxfp4: zeros store exponent 0, subnormals stay finite", "[unit]") {
  const StoredSide zeros = store_rows("mxfp4", Side::key, 32, std::vector<float>(32, 0.0F));
  CHECK(zeros.bytes("scales") == std::vector<int>{0});
  CHECK(zeros.decoded == std::vector<float>(32, 0.0F));
  for (const float f : store_rows("mxfp4", Side::key, 32, std::vector<float>(32, 1e-42F)).decoded) CHECK(f < 1e-37F);
}

TEST_CASE("mxfp4: a rotation spreads an outlier over its block", "[unit]") {
  std::vector<float> x(32, 0.0F);
  x[7] = 32.0F;
  CHECK(store_rows("mxfp4:rotation=16", Side::key, 32, x).bytes("scales") == std::vector<int>{128});  // 8 = 4 * 2^1
  CHECK(store_rows("mxfp4:rotation=16", Side::key, 32, x).decoded[7] == 32.0F);
}

TEST_CASE("mxfp4: 4.25 bits a value; refusals", "[unit]") {
  CHECK(bits_per_value("mxfp4", 128, 10) == 4.25);
  CHECK(refusal("mxfp4", 80) == "head_dim is 80, must be a multiple of 32, the block of MXFP4");
  CHECK(refusal("mxfp4:rotation=24", 64) == "rotation is 24, must be 0 or a power of two");
  CHECK(refusal("mxfp4:rotation=128", 64) == "rotation is 128, must divide head_dim (64)");
}

#include <cmath>

#include "tests/catch.hpp"
#include "tests/support/side_rows.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("qserve_kv4: by hand, scale and zero point of sixteen values", "[unit]") {
  const StoredSide s = store_rows("qserve_kv4", Side::key, 16, {0, .1F, -.2F, .35F, .5F, -.75F, 1, 1.3F, -1.6F, 2, 2.5F, -3, .05F, -.02F, 4.4F, -.6F});
  CHECK(s.bytes("scales") == std::vector<int>{0xE4, 0x37});
  CHECK(s.bytes("zeros") == std::vector<int>{0x15, 0x46});
  CHECK(s.bytes("codes") == std::vector<int>{0x66, 0x76, 0x57, 0x98, 0xA3, 0x0B, 0x66, 0x5F});
}

TEST_CASE("qserve_kv4: code 16 clamps, or wraps as released", "[unit]") {
  const std::vector<float> narrow{2.109375F, 2.11328125F, 2.1171875F, 2.12109375F};
  CHECK(store_rows("qserve_kv4", Side::key, 4, narrow).bytes("codes") == std::vector<int>{0x61, 0xFB});
  CHECK(store_rows("qserve_kv4:code=wrap", Side::key, 4, narrow).bytes("codes") == std::vector<int>{0x61, 0x0B});
}

TEST_CASE("qserve_kv4: equal values decode to themselves, symmetric codes have no zero point", "[unit]") {
  CHECK(store_rows("qserve_kv4", Side::value, 4, {3.5F, 3.5F, 3.5F, 3.5F}).decoded == std::vector<float>{3.5F, 3.5F, 3.5F, 3.5F});
  CHECK(store_rows("qserve_kv4", Side::value, 4, {0, 0, 0, 0}).decoded == std::vector<float>{0, 0, 0, 0});
  const StoredSide s = store_rows("qserve_kv4:zeros=false", Side::value, 4, {7, -7, 3.4F, -1.5F});
  CHECK(s.bytes("codes") == std::vector<int>{0x97, 0xE3});
  CHECK(s.decoded == std::vector<float>{7, -7, 3, -2});
  CHECK(store_rows("qserve_kv4:bits=8", Side::value, 2, {0, 255}).decoded == std::vector<float>{0, 255});
}

TEST_CASE("qserve_kv4: rows at fp16's end decode to finite values near themselves", "[unit]") {
  for (const float sign : {1.0F, -1.0F})
    for (int steps = 1; steps < 64; ++steps) {  // lowest value 65504 - 32 steps, or -65504
      const float far = sign * (65504.0F - 32.0F * static_cast<float>(steps));
      for (const char* recipe : {"qserve_kv4", "qserve_kv4:bits=8"}) {
        const StoredSide s = store_rows(recipe, Side::key, 4, {sign * 65504.0F, far, far, sign * 65504.0F});
        CAPTURE(recipe, sign, steps, s.decoded);
        for (const float f : s.decoded) CHECK(std::fabs(f) <= 65504.0F + 32.0F * static_cast<float>(steps));
        CHECK(std::fabs(s.decoded[0] - sign * 65504.0F) <= 300.0F);  // three roundings of 2^-11, or the lowest for all
      }
    }
}

TEST_CASE("qserve_kv4: bits a value; refusals", "[unit]") {
  CHECK(bits_per_value("qserve_kv4", 128, 10) == 4.25);
  CHECK(bits_per_value("qserve_kv4:zeros=false", 128, 10) == 4.125);
  CHECK(bits_per_value("qserve_kv4:bits=8", 128, 10) == 8.25);
  CHECK(refusal("qserve_kv4:bits=5", 64) == "bits is 5, must be 4 or 8");
  CHECK(refusal("qserve_kv4:bits=8,code=wrap", 64) == "code is wrap, must be clamp unless bits is 4 and zeros is true");
}

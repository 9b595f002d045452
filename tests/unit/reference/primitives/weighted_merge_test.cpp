#include "reference/primitives/weighted_merge.hpp"

#include <algorithm>
#include <vector>

#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;

TEST_CASE("a blend of 0 and 10 by .1 and .3 is 7.5", "[unit]") {
  std::vector<float> receiver{10.0F};
  blend_into(receiver, .3F, std::vector<float>{0.0F}, .1F);
  REQUIRE(std::abs(receiver[0] - 7.5F) <= 1e-6F);
}

TEST_CASE("a row of weight 0 changes nothing, a receiver of weight 0 takes the row, two of weight 0 meet halfway", "[unit]") {
  std::vector<float> receiver{10.0F, -3.0F};
  blend_into(receiver, .3F, std::vector<float>{1.0F, 2.0F}, 0.0F);
  REQUIRE(receiver == std::vector<float>{10.0F, -3.0F});
  blend_into(receiver, 0.0F, std::vector<float>{1.0F, 2.0F}, .2F);
  REQUIRE(receiver == std::vector<float>{1.0F, 2.0F});
  blend_into(receiver, 0.0F, std::vector<float>{3.0F, 2.0F}, 0.0F);
  REQUIRE(receiver == std::vector<float>{2.0F, 2.0F});
}

TEST_CASE("a blend never leaves the segment between its two rows, and equal rows stay", "[unit]") {
  test::Random random(11);
  for (int i = 0; i < 10000; ++i) {
    const float a = random.normal() * 1e3F, b = random.normal() * 1e-3F;
    std::vector<float> receiver{a, a};
    blend_into(receiver, std::abs(random.normal()), std::vector<float>{b, a}, std::abs(random.normal()));
    REQUIRE(receiver[0] >= std::min(a, b));
    REQUIRE(receiver[0] <= std::max(a, b));
    REQUIRE(receiver[1] == a);
  }
}

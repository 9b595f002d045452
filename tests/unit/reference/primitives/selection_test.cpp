#include "reference/primitives/selection.hpp"

#include <cmath>
#include <limits>

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("top_k keeps the highest scores in ascending slots and the lower slot of equal scores", "[unit]") {
  const std::vector<float> scores{0.30F, 0.02F, 0.01F, 0.25F, 0.01F, 0.01F, 0.02F, 0.01F};
  REQUIRE(top_k(scores, 3) == Slots{0, 1, 3});
  REQUIRE(top_k(scores, 4) == Slots{0, 1, 3, 6});
  REQUIRE(top_k(scores, 5) == Slots{0, 1, 2, 3, 6});
  REQUIRE(top_k(scores, 0).empty());
  REQUIRE(top_k(scores, 8) == Slots{0, 1, 2, 3, 4, 5, 6, 7});
  // Zeros of both signs are equal, subnormals are above them, infinities are scores like others.
  const std::vector<float> odd{-0.0F, 0.0F, 1e-45F, -1.0F, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()};
  REQUIRE(top_k(odd, 1) == Slots{4});
  REQUIRE(top_k(odd, 2) == Slots{2, 4});
  REQUIRE(top_k(odd, 3) == Slots{0, 2, 4});
  REQUIRE(top_k(odd, 5) == Slots{0, 1, 2, 3, 4});
  const std::vector<float> equal(1000, 0.5F);
  const Slots first = top_k(equal, 33);
  REQUIRE(first == ends(33, 33, 0));
}

TEST_CASE("masses are compared as integers, not as the floats nearest to them", "[unit]") {
  const std::uint64_t big = std::uint64_t{1} << 60;
  const std::vector<std::uint64_t> masses{big, big + 1, big, big + 2};
  REQUIRE(top_k(masses, 1) == Slots{3});
  REQUIRE(top_k(masses, 2) == Slots{1, 3});
  REQUIRE(top_k(masses, 3) == Slots{0, 1, 3});
}

TEST_CASE("selections refuse NaN and impossible counts", "[unit]") {
  const std::vector<float> scores{1.0F, std::numeric_limits<float>::quiet_NaN()};
  REQUIRE_THROWS_WITH(top_k(scores, 1), "score[1] is NaN, must be a number");
  REQUIRE_THROWS_WITH(lowest(scores), "score[1] is NaN, must be a number");
  REQUIRE_THROWS_WITH(top_k(std::vector<float>{1.0F}, 2), "k is 2, must be between 0 and 1");
  REQUIRE_THROWS_WITH(lowest(std::vector<float>{}), "scores is empty, must hold at least one score");
}

TEST_CASE("the lowest score is the first of equal ones", "[unit]") {
  REQUIRE(lowest(std::vector<float>{3, 1, 2, 1}) == 1);
  REQUIRE(lowest(std::vector<float>{0.0F, -0.0F}) == 0);
}

TEST_CASE("first and newest slots never overlap and never leave the store", "[unit]") {
  REQUIRE(ends(8, 2, 3) == Slots{0, 1, 5, 6, 7});
  REQUIRE(ends(5, 2, 3) == Slots{0, 1, 2, 3, 4});
  REQUIRE(ends(4, 2, 3) == Slots{0, 1, 2, 3});
  REQUIRE(ends(1, 2, 3) == Slots{0});
  REQUIRE(ends(0, 2, 3).empty());
  REQUIRE(ends(6, 0, 2) == Slots{4, 5});
  REQUIRE(ends(6, 2, 0) == Slots{0, 1});
  REQUIRE(with_tail({1, 3}, 5, 7) == Slots{1, 3, 5, 6});
}

#include "reference/primitives/pooling.hpp"

#include "core/errors.hpp"
#include "reference/primitives/selection.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

namespace {

const std::vector<float> kPooledScores{0.30F, 0.02F, 0.01F, 0.25F, 0.01F, 0.01F, 0.02F, 0.01F};

void require_near(const std::vector<float>& ours, const std::vector<double>& theirs) {
  REQUIRE(ours.size() == theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    CAPTURE(i);
    REQUIRE(std::abs(ours[i] - theirs[i]) < 1e-6);  // six decimals were worked out by hand
  }
}

}  // namespace

TEST_CASE("average pooling pads with zeros and always divides by the kernel", "[unit]") {
  require_near(pool(kPooledScores, Pooling::avg, 3), {.106667, .11, .093333, .09, .09, .013333, .013333, .01});
  require_near(pool(kPooledScores, Pooling::avg, 5), {.066, .116, .118, .06, .06, .06, .01, .008});
  REQUIRE(pool(kPooledScores, Pooling::avg, 1) == kPooledScores);
  REQUIRE(top_k(pool(kPooledScores, Pooling::avg, 3), 3) == Slots{0, 1, 2});
}

TEST_CASE("maximum pooling pads with minus infinity and gives plateaus whose lowest slots win", "[unit]") {
  REQUIRE(pool(kPooledScores, Pooling::max, 3) == std::vector<float>{.30F, .30F, .25F, .25F, .25F, .02F, .02F, .02F});
  REQUIRE(pool(std::vector<float>{-2, -3}, Pooling::max, 5) == std::vector<float>{-2, -2});
  REQUIRE(top_k(pool(kPooledScores, Pooling::max, 3), 3) == Slots{0, 1, 2});
  REQUIRE(pool(std::vector<float>{}, Pooling::max, 7).empty());
}

TEST_CASE("pooling refuses a kernel without a centre", "[unit]") {
  REQUIRE_THROWS_WITH(pool(kPooledScores, Pooling::avg, 4), "kernel is 4, must be odd and positive");
  REQUIRE_THROWS_WITH(pool(kPooledScores, Pooling::max, 0), "kernel is 0, must be odd and positive");
}

// Signatures of pages on an example worked by hand.
#include "reference/primitives/eviction/signatures.hpp"

#include "tests/catch.hpp"

using namespace kvatlas::eviction;

namespace {

const std::vector<float> kScores{.9F, .1F, .8F, .2F, .7F, .6F, .05F, .3F, .4F, .5F, .15F, .25F, .02F, .85F, .01F, .35F};
const auto no_word = [](std::int64_t) -> std::uint32_t { return 0; };

}  // namespace

TEST_CASE("the better half of the tokens, page by page, against an anchor", "[unit]") {
  const Signature bits = better_half(kScores);
  REQUIRE(bits == Signature{1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1});
  const Signature anchor = anchor_of(Anchor::alternating, bits, 4, no_word);
  REQUIRE(anchor == Signature{0, 1, 0, 1});
  REQUIRE(distances_to(anchor, bits) == std::vector<std::int64_t>{4, 2, 2, 0});
  REQUIRE(anchor_of(Anchor::mean, bits, 4, no_word) == Signature{1, 1, 0, 0});  // columns hold 3, 3, 1, 1 ones of 4
  REQUIRE(anchor_of(Anchor::mean, Signature{1, 0, 0, 0}, 2, no_word) == Signature{0, 0});  // half is not more than half
  REQUIRE(anchor_of(Anchor::ones, bits, 2, no_word) == Signature{1, 1});
  REQUIRE(anchor_of(Anchor::random, bits, 3, [](std::int64_t i) -> std::uint32_t { return i == 1 ? 0x80000000U : 0x7FFFFFFFU; }) == Signature{0, 1, 0});
  REQUIRE(better_half(std::vector<float>{1, 1, 1}) == Signature{1, 0, 0});  // floor(3 / 2), the first of equals
}

TEST_CASE("representatives are spread over the distances", "[unit]") {
  const std::vector<std::int64_t> distances{4, 2, 2, 0};
  using Pages = std::vector<std::int64_t>;
  REQUIRE(representatives({1, 2, 3}, distances, 1) == Pages{3});
  REQUIRE(representatives({1, 2, 3}, distances, 2) == Pages{3, 1});  // steps of floor(3 / 2)
  REQUIRE(representatives({0, 1, 2, 3}, distances, 2) == Pages{3, 2});
  REQUIRE(representatives({1, 2, 3}, distances, 9) == Pages{3, 1, 2});
  REQUIRE(representatives({1}, distances, 0).empty());
}

#include "core/philox.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "tests/catch.hpp"

namespace {

using namespace kvatlas;

TEST_CASE("Philox4x32-10 gives the known answers of Random123", "[unit][golden]") {
  // Random123, tests/kat_vectors, lines "philox4x32 10".
  REQUIRE(philox4x32_10({{0, 0, 0, 0}}, 0, 0) == PhiloxBlock{{0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U}});
  REQUIRE(philox4x32_10({{0xffffffffU, 0xffffffffU, 0xffffffffU, 0xffffffffU}}, 0xffffffffU, 0xffffffffU) ==
          PhiloxBlock{{0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU}});
  REQUIRE(philox4x32_10({{0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U}}, 0xa4093822U, 0x299f31d0U) ==
          PhiloxBlock{{0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U}});
}

TEST_CASE("a word of a stream is word index mod 4 of block index / 4", "[unit]") {
  const RandomStream stream{.seed = 0x0123456789abcdefULL, .layer = 3, .head = 5, .step = 7};
  for (std::uint64_t index : {0ULL, 1ULL, 6ULL, 1000003ULL, (1ULL << 34) - 1}) {
    const PhiloxBlock block =
        philox4x32_10({{static_cast<std::uint32_t>(index / 4), 7, 5, 3}}, 0x89abcdefU, 0x01234567U);
    REQUIRE(random_word(stream, index) == block.word[index % 4]);
  }
}

TEST_CASE("every part of the key changes the stream", "[unit]") {
  std::set<std::uint32_t> words;
  for (const RandomStream& stream : {RandomStream{}, RandomStream{.seed = 1}, RandomStream{.seed = 1ULL << 32},
                                     RandomStream{.layer = 1}, RandomStream{.head = 1}, RandomStream{.step = 1}})
    words.insert(random_word(stream, 0));
  REQUIRE(words.size() == 6);
}

TEST_CASE("uniform numbers are multiples of 2^-24 in [0, 1) with mean one half", "[unit]") {
  const RandomStream stream{.seed = 42};
  double sum = 0.0;
  constexpr int kCount = 40000;
  for (std::uint64_t i = 0; i < kCount; ++i) {
    const float u = random_uniform(stream, i);
    REQUIRE((u >= 0.0F && u < 1.0F));
    REQUIRE(u * 0x1p24F == std::floor(u * 0x1p24F));
    sum += static_cast<double>(u);
  }
  REQUIRE(std::abs(sum / kCount - 0.5) < 5.0 * std::sqrt(1.0 / 12.0 / kCount));  // five standard errors
}

TEST_CASE("uniform integers below n reach every value and nothing else", "[unit]") {
  std::vector<int> seen(7, 0);
  for (std::uint64_t i = 0; i < 7000; ++i) ++seen.at(random_below({.seed = 9}, i, 7));
  for (const int count : seen) REQUIRE(std::abs(count - 1000) < 150);  // five standard deviations of 29
  REQUIRE(random_below({.seed = 9}, 0, 1) == 0);
}

TEST_CASE("normal numbers have the moments and tails of the standard normal", "[unit]") {
  const RandomStream stream{.seed = 7, .layer = 1};
  constexpr int kCount = 40000;
  double sum = 0.0, squares = 0.0, fourth = 0.0, lag = 0.0, before = 0.0;
  int beyond_two = 0;
  for (std::uint64_t i = 0; i < kCount; ++i) {
    const double z = random_normal(stream, i);
    REQUIRE(std::abs(z) < 6.67);
    sum += z, squares += z * z, fourth += z * z * z * z, lag += z * before;
    beyond_two += std::abs(z) > 2.0 ? 1 : 0;
    before = z;
  }
  const double error = 5.0 / std::sqrt(kCount);  // five standard errors of a unit variance
  REQUIRE(std::abs(sum / kCount) < error);
  REQUIRE(std::abs(squares / kCount - 1.0) < error * std::sqrt(2.0));
  REQUIRE(std::abs(fourth / kCount - 3.0) < error * std::sqrt(96.0));
  REQUIRE(std::abs(lag / kCount) < error);
  REQUIRE(std::abs(beyond_two / static_cast<double>(kCount) - 0.0455) < error * 0.21);
}

TEST_CASE("the two normal numbers of a pair share their radius", "[unit]") {
  constexpr double kTwoPi = 6.283185307179586;
  const RandomStream stream{.seed = 3};
  const double a = random_normal(stream, 10), b = random_normal(stream, 11);
  const double u = (static_cast<double>(random_word(stream, 10)) + 1.0) / 4294967296.0;
  REQUIRE(std::abs(a * a + b * b + 2.0 * std::log(u)) < 1e-13);
  REQUIRE(std::abs(std::atan2(b, a) - std::remainder(kTwoPi * random_word(stream, 11) / 4294967296.0, kTwoPi)) < 1e-14);
}

}  // namespace

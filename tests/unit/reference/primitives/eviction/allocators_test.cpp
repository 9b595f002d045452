#include "reference/primitives/eviction/allocators.hpp"

#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::eviction;

namespace {

std::vector<std::int64_t> schedule(const Pyramid& p, int layers, std::int64_t rows) {
  std::vector<std::int64_t> budgets;
  for (int l = 0; l < layers; ++l) budgets.push_back(pyramid_rows(p, {.layer = l, .ordinal = l, .layers = layers}, rows));
  return budgets;
}

std::int64_t sum(const std::vector<std::int64_t>& values) {
  std::int64_t total = 0;
  for (const std::int64_t v : values) total += v;
  return total;
}

}  // namespace

TEST_CASE("the released pyramid drifts above its budget, the exact one does not", "[unit]") {
  const auto drifted = schedule({2048_tok, 32_tok, 20, Schedule::floor}, 32, 32000);
  REQUIRE(drifted.front() - 32 == 3932);
  REQUIRE(drifted.back() - 32 == 119);
  REQUIRE(sum(drifted) - 32 * 32 == 64816);
  const auto exact = schedule({2048_tok, 32_tok, 20, Schedule::exact}, 32, 32000);
  REQUIRE(exact.front() - 32 == 3932);
  REQUIRE(exact.back() - 32 == 100);
  REQUIRE(sum(exact) == 32 * 2048);
  const auto small = schedule({128_tok, 8_tok, 20, Schedule::floor}, 32, 8000);
  REQUIRE(small.front() - 8 == 234);
  REQUIRE(small.back() - 8 == 17);
}

TEST_CASE("kvpress' pyramid counts the window and is off where the last layer would get less than it", "[unit]") {
  const auto half = schedule({2048_tok, 64_tok, 20, Schedule::kvpress}, 32, 4096);
  REQUIRE(std::vector<std::int64_t>(half.begin(), half.begin() + 3) == std::vector<std::int64_t>{3994, 3868, 3743});
  REQUIRE(half[30] == 228);
  REQUIRE(half[31] == 102);
  REQUIRE(sum(half) == 65536);
  REQUIRE(schedule({1024_tok, 64_tok, 20, Schedule::kvpress}, 32, 4096) == std::vector<std::int64_t>(32, 1024));
}

TEST_CASE("a pyramid gives no layer more than there is, and equal budgets to a short prompt", "[unit]") {
  for (const std::int64_t rows : {40, 100, 150, 161, 170, 190, 1000}) {
    const auto budgets = schedule({88_tok, 8_tok, 20, Schedule::exact}, 5, rows);
    for (const std::int64_t b : budgets) {
      REQUIRE(b <= rows);
      REQUIRE(b >= std::min<std::int64_t>(rows, 8));
    }
    if (rows > 88) REQUIRE(sum(budgets) == 5 * 88);
    if (rows > 88 && rows < 160) REQUIRE(budgets == std::vector<std::int64_t>(5, 88));
  }
  REQUIRE(schedule({88_tok, 8_tok, 20, Schedule::exact}, 1, 1000) == std::vector<std::int64_t>{88});
}

TEST_CASE("heads of a layer share its budget by their best scores, but each is sure of some", "[unit]") {
  const std::vector<float> a{9, 8, 7, 6}, b{5, 5, 1, 0};
  const std::vector<std::span<const float>> heads{a, b};
  REQUIRE(share_best(heads, 2, 0) == Counts{4, 0});
  REQUIRE(share_best(heads, 2, 1) == Counts{3, 1});
  REQUIRE(share_best(heads, 2, 2) == Counts{2, 2});
  REQUIRE(share_best(heads, 4, 0) == Counts{4, 4});
  REQUIRE(share_best(heads, 0, 3) == Counts{0, 0});
  const std::vector<float> equal{1, 1, 1, 1};
  REQUIRE(share_best({equal, equal}, 3, 0) == Counts{4, 2});  // of equal scores the lower head keeps first
}

TEST_CASE("the released sharing rounds head by head and loses budget", "[unit]") {
  const std::vector<float> a{9, 8, 7, 1}, b{9.5F, 8.5F, 7.5F, 1};
  REQUIRE(share_rounded({a, b}, 3, 0.2, false) == Counts{2, 2});  // 3 * 0.8 = 2.4, and trunc(0.6) = 0 are sure
  REQUIRE(share_rounded({a, b}, 3, 1.0, false) == Counts{3, 3});
  // Head 0 holds all of its mass in its three best tokens, head 1 half of it: scores of head 1 count half.
  const std::vector<float> sharp{4, 3, 2, 0, 0, 0}, flat{5, 5, 5, 5, 5, 5};
  REQUIRE(share_rounded({sharp, flat}, 3, 0, false) == Counts{0, 6});
  REQUIRE(share_rounded({sharp, flat}, 3, 0, true) == Counts{2, 4});
}

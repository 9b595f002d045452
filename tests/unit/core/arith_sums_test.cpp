#include "core/arith_sums.hpp"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "tests/catch.hpp"

using namespace kvatlas;

namespace {

std::uint32_t raw(float x) {
  std::uint32_t u = 0;
  std::memcpy(&u, &x, sizeof u);
  return u;
}

/// Values of very different size, ties, signed zeros and subnormals among them: an order that is off by one place shows.
std::vector<float> uneven(std::size_t count, std::uint32_t seed) {
  std::vector<float> out(count);
  for (std::size_t i = 0; i < count; ++i) {
    seed = seed * 1664525U + 1013904223U;
    const float unit = static_cast<float>(static_cast<std::int32_t>(seed)) * 0x1p-31F;
    out[i] = std::ldexp(unit, static_cast<int>((seed >> 3) % 12U));
    if (seed % 37U == 0) out[i] = -0.0F;
    if (seed % 41U == 0) out[i] = 1e-41F;
  }
  if (count > 20) out[20] = 1000.0F;  // the outlier channel
  return out;
}

/// The definition: every lane's own list of terms, then the butterflies as all lanes see them.
float by_definition(const std::vector<std::vector<std::pair<float, float>>>& lanes) {
  std::vector<float> value;
  for (const auto& terms : lanes) {
    float sum = 0.0F;
    for (const auto& [a, b] : terms) sum = std::fma(a, b, sum);
    value.push_back(sum);
  }
  for (std::size_t distance = lanes.size() / 2; distance > 0; distance /= 2) {
    std::vector<float> next(value.size());
    for (std::size_t l = 0; l < value.size(); ++l) next[l] = value[l] + value[l ^ distance];
    value = next;
  }
  for (const float v : value) REQUIRE(raw(v) == raw(value[0]));
  return value[0];
}

using Lanes = std::vector<std::vector<std::pair<float, float>>>;

float lane_tree(const std::vector<float>& a, const std::vector<float>& b) {
  Lanes lanes(32);
  for (std::size_t i = 0; i < a.size(); ++i) lanes[i % 32].emplace_back(a[i], b[i]);
  return by_definition(lanes);
}
float qk_order(const float* q, const float* k, std::size_t n) {
  Lanes lanes(8);
  for (std::size_t run = 0; run * 8 < n; ++run)  // runs of eight channels go round the lanes
    for (std::size_t i = run * 8; i < n && i < run * 8 + 8; ++i) lanes[run & 7].emplace_back(q[i], k[i]);
  return by_definition(lanes);
}

}  // namespace

TEST_CASE("lane sums and dot products follow the lane tree at every length", "[unit]") {
  for (std::size_t n = 0; n <= 130; ++n) {
    CAPTURE(n);
    const auto a = uneven(n, 1U + static_cast<std::uint32_t>(n));
    const auto b = uneven(n, 1000U + static_cast<std::uint32_t>(n));
    REQUIRE(raw(num::lane_sum(a)) == raw(lane_tree(a, std::vector<float>(n, 1.0F))));
    REQUIRE(raw(num::lane_dot(a, b)) == raw(lane_tree(a, b)));
  }
  for (const std::size_t n : {1000U, 4096U, 4099U}) {
    CAPTURE(n);
    const auto a = uneven(n, 77);
    const auto b = uneven(n, 78);
    REQUIRE(raw(num::lane_sum(a)) == raw(lane_tree(a, std::vector<float>(n, 1.0F))));
    REQUIRE(raw(num::lane_dot(a, b)) == raw(lane_tree(a, b)));
  }
  REQUIRE(raw(num::lane_sum(std::vector<float>{})) == 0U);
  REQUIRE(raw(num::lane_sum(std::vector<float>(40, -0.0F))) == 0U);  // lanes start from +0
}

TEST_CASE("qk_dot follows the order of eight lanes at every width", "[unit]") {
  for (std::size_t n = 0; n <= 200; ++n) {
    CAPTURE(n);
    const auto q = uneven(n, 3U + static_cast<std::uint32_t>(n));
    const auto k = uneven(n, 4000U + static_cast<std::uint32_t>(n));
    REQUIRE(raw(num::qk_dot(q, k)) == raw(qk_order(q.data(), k.data(), n)));
  }
  const auto q = uneven(576, 5);
  const auto k = uneven(576, 6);
  REQUIRE(raw(num::qk_dot(q, k)) == raw(qk_order(q.data(), k.data(), 576)));
}

TEST_CASE("qk_dot by hand: a sum that depends on its order", "[unit]") {
  // Channels 0 and 8 lie in lanes 0 and 1, channel 64 in lane 0 again: (2^24 - 2^24) + 1 keeps the 1, another order loses it.
  std::vector<float> q(128, 0.0F);
  const std::vector<float> k(128, 1.0F);
  q[0] = 0x1p24F;
  q[64] = -0x1p24F;
  q[8] = 1.0F;
  REQUIRE(num::qk_dot(q, k) == 1.0F);
  q[64] = 0.0F;
  q[16] = -0x1p24F;  // lane 2 meets lane 0 at distance 2, before lane 1 does at distance 1
  REQUIRE(num::qk_dot(q, k) == 1.0F);
  q[16] = 0.0F;
  q[9] = -0x1p24F;   // lane 1, after the 1: 1 - 2^24 is exact, the sum too
  REQUIRE(num::qk_dot(q, k) == 1.0F);
  q[8] = 0.5F;       // 0.5 - 2^24 ties: rounds to -2^24
  REQUIRE(num::qk_dot(q, k) == 0.0F);
}

TEST_CASE("qk_dot_rows gives the bits of qk_dot for every row, width and stride, and writes nothing else", "[unit]") {
  for (const int n : {1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 80, 96, 128, 192, 256, 576})
    for (const std::int64_t rows : {0, 1, 7, 8, 9, 15, 16, 17, 33})
      for (const std::int64_t gap : {0, 3}) {
        CAPTURE(n, rows, gap);
        const std::int64_t stride = n + gap;
        const auto q = uneven(static_cast<std::size_t>(n), 9);
        // Exactly the memory of the rows: a sanitizer sees a read past the last one.
        const std::int64_t held = rows == 0 ? 0 : (rows - 1) * stride + n;
        const auto k = uneven(static_cast<std::size_t>(held), 10U + static_cast<std::uint32_t>(rows));
        std::vector<float> out(static_cast<std::size_t>(rows) + 2, 42.0F);
        num::qk_dot_rows(q.data(), k.data(), stride, rows, n, out.data() + 1);
        REQUIRE(out.front() == 42.0F);
        REQUIRE(out.back() == 42.0F);
        int wrong = 0;
        for (std::int64_t r = 0; r < rows; ++r)
          wrong += raw(out[static_cast<std::size_t>(r) + 1]) !=
                   raw(qk_order(q.data(), k.data() + r * stride, static_cast<std::size_t>(n)));
        REQUIRE(wrong == 0);
      }
}

TEST_CASE("wide sums give the bits of their one-at-a-time definitions", "[unit]") {
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    const std::size_t n = (seed * 37U) % 700U;
    CAPTURE(seed, n);
    const auto a = uneven(n + 1, seed);
    const auto b = uneven(n + 1, seed + 5000U);
    const auto count = static_cast<std::int64_t>(n);
    REQUIRE(raw(num::lane_sum(a.data() + 1, count)) == raw(num::scalar::lane_sum(a.data() + 1, count)));
    REQUIRE(raw(num::lane_dot(a.data() + 1, b.data(), count)) == raw(num::scalar::lane_dot(a.data() + 1, b.data(), count)));
    REQUIRE(raw(num::qk_dot(a.data(), b.data() + 1, static_cast<int>(n))) ==
            raw(num::scalar::qk_dot(a.data(), b.data() + 1, static_cast<int>(n))));
  }
}

TEST_CASE("NaN and infinity reach the result of a sum", "[unit]") {
  std::vector<float> a(100, 1.0F);
  const std::vector<float> b(100, 1.0F);
  a[99] = NAN;
  CHECK(std::isnan(num::lane_sum(a)));
  CHECK(std::isnan(num::lane_dot(a, b)));
  CHECK(std::isnan(num::qk_dot(a, b)));
  a[99] = -INFINITY;
  CHECK(num::lane_sum(a) == -INFINITY);
  CHECK(num::lane_dot(a, b) == -INFINITY);
  CHECK(num::qk_dot(a, b) == -INFINITY);
}

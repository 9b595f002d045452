#include "core/dct.hpp"

#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "core/errors.hpp"
#include "tests/catch.hpp"

namespace {

using namespace kvatlas;

std::vector<double> bumpy(std::size_t n) {
  std::vector<double> x(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = static_cast<double>((i * 7919 + 13) % 101) / 50.0 - 1.0;
  return x;
}

/// The definition of the resample matrix, summed over k in long double.
long double entry_by_definition(std::int64_t kept, std::int64_t tokens, std::int64_t m, std::int64_t t) {
  const long double pi = std::numbers::pi_v<long double>;
  const auto n = static_cast<long double>(tokens), k_count = static_cast<long double>(kept);
  long double sum = 0.0L;
  for (std::int64_t k = 0; k < kept; ++k) {
    const long double weight = (k == 0 ? 1.0L : 2.0L) / std::sqrt(n * k_count);
    sum += weight * std::cos(pi * static_cast<long double>((2 * m + 1) * k % (4 * kept)) / (2.0L * k_count)) *
           std::cos(pi * static_cast<long double>((2 * t + 1) * k % (4 * tokens)) / (2.0L * n));
  }
  return std::sqrt(k_count / n) * sum;
}

TEST_CASE("DCT-II of 1 2 3 4 is the published one", "[unit][golden]") {
  const std::vector<double> x = dct2(std::vector<double>{1, 2, 3, 4});
  REQUIRE(std::abs(x[0] - 5.0) < 1e-15);
  REQUIRE(std::abs(x[1] + 2.2304424973876635) < 2e-15);
  REQUIRE(std::abs(x[2]) < 1e-15);
  REQUIRE(std::abs(x[3] + 0.1585126677811080) < 2e-15);
}

TEST_CASE("DCT-III undoes DCT-II and both keep the length of a vector", "[unit]") {
  for (const std::size_t n : {0U, 1U, 2U, 31U, 32U, 33U, 200U}) {
    const std::vector<double> x = bumpy(n);
    const std::vector<double> there = dct2(x);
    const std::vector<double> back = dct3(there);
    double before = 0.0, after = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      REQUIRE(std::abs(back[i] - x[i]) < static_cast<double>(n) * 0x1p-50);
      before += x[i] * x[i], after += there[i] * there[i];
    }
    REQUIRE(std::abs(before - after) <= static_cast<double>(n * n) * 0x1p-50);
  }
}

TEST_CASE("resampling 1 to 4 and 1 to 8 gives the published values", "[unit][golden]") {
  const auto resampled = [](int tokens, int kept) {
    Array rows({tokens, 1}), out({kept, 1});
    for (int i = 0; i < tokens; ++i) rows.values()[static_cast<std::size_t>(i)] = static_cast<float>(i + 1);
    LowPass(Tokens(tokens), Tokens(kept)).apply(rows.view(), out.view());
    return out.values();
  };
  const std::vector<float> two = resampled(4, 2);
  REQUIRE(std::abs(two[0] - 1.3847787512F) < 4e-7F);
  REQUIRE(std::abs(two[1] - 3.6152212488F) < 4e-7F);
  const std::vector<float> four = resampled(8, 4);
  const std::vector<float> expected = {1.3951748114F, 3.5784104099F, 5.4215895901F, 7.6048251886F};
  for (std::size_t i = 0; i < 4; ++i) REQUIRE(std::abs(four[i] - expected[i]) < 2e-6F);  // eight terms up to 8
}

TEST_CASE("every entry of the resample matrix is its definition rounded to float32", "[unit]") {
  for (const auto& [tokens, kept] : std::vector<std::pair<int, int>>{{1, 1}, {2, 1}, {4, 2}, {33, 32}, {64, 31}, {100, 50}, {97, 13}}) {
    const LowPass low(Tokens(tokens), Tokens{kept});
    for (std::int64_t m = 0; m < kept; ++m)
      for (std::int64_t t = 0; t < tokens; ++t) {
        CAPTURE(tokens, kept, m, t);
        const long double exact = entry_by_definition(kept, tokens, m, t);
        // Half a float32 ulp, and a few float64 ulps of the largest entry where terms cancel.
        REQUIRE(std::abs(static_cast<long double>(low.matrix()(m, t)) - exact) <= std::abs(exact) * 0x1.001p-25L * 2 + 0x1p-49L);
      }
  }
}

TEST_CASE("keeping all tokens is the identity", "[unit]") {
  for (const int n : {1, 2, 31, 64}) {
    const LowPass low(Tokens{n}, Tokens{n});
    for (std::int64_t m = 0; m < n; ++m)
      for (std::int64_t t = 0; t < n; ++t) REQUIRE(std::abs(low.matrix()(m, t) - (m == t ? 1.0F : 0.0F)) < 1e-13F);
  }
}

TEST_CASE("a constant channel stays constant and mirrored rows are mirrored", "[unit]") {
  const LowPass low(1000_tok, 310_tok);
  Array rows({1000, 2}, 3.0F), out({310, 2});
  low.apply(rows.view(), out.view());
  for (const float x : out.values()) REQUIRE(std::abs(x - 3.0F) < 1e-5F);
  for (std::int64_t t = 0; t < 1000; ++t) REQUIRE(low.matrix()(7, t) == low.matrix()(310 - 8, 999 - t));
}

TEST_CASE("an output is one accumulator in ascending token without fma", "[unit]") {
  const LowPass low(9_tok, 7_tok);
  Array rows({9, 45}), out({7, 45});
  for (std::size_t i = 0; i < rows.values().size(); ++i) rows.values()[i] = static_cast<float>(i * i % 17) * 0.37F - 2.0F;
  low.apply(rows.view(), out.view());
  for (std::int64_t m = 0; m < 7; ++m)
    for (std::int64_t c = 0; c < 45; ++c) {
      volatile float sum = 0.0F;
      for (std::int64_t t = 0; t < 9; ++t) {
        const volatile float product = low.matrix()(m, t) * rows.view()(t, c);
        sum = sum + product;
      }
      REQUIRE(out.view()(m, c) == sum);
    }
}

TEST_CASE("a resample that cannot be is refused", "[unit]") {
  REQUIRE_THROWS_WITH(LowPass(4_tok, 5_tok), "kept is 5, must be between 1 and tokens (4)");
  REQUIRE_THROWS_WITH(LowPass(4_tok, 0_tok), "kept is 0, must be between 1 and tokens (4)");
  REQUIRE_THROWS_WITH(LowPass(0_tok, 0_tok), "tokens is 0, must be between 1 and 1048576");
  const LowPass low(4_tok, 2_tok);
  Array rows({3, 1}), out({2, 1});
  REQUIRE_THROWS_WITH(low.apply(rows.view(), out.view()), "rows has 3 tokens, must be [4, channels]");
  Array four({4, 1}), wide({2, 2});
  REQUIRE_THROWS_WITH(low.apply(four.view(), wide.view()), "out must be [2, 1]");
}

}  // namespace

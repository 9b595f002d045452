#include "gpu/simt/mma.hpp"

#include "tests/unit/gpu/simt/run.hpp"

using namespace kvatlas::gpu;

namespace {

using A = std::array<std::array<int, 32>, 16>;
using B = std::array<std::array<int, 8>, 32>;
using D = std::array<std::array<int, 8>, 16>;

/// Fills fragments from matrices through the PTX tables written out here once more, row by row.
template <bool SignedA, bool SignedB>
D product(const A& a, const B& b, const D& c) {
  D out{};
  const LaunchReport r = run({}, [&](SimCtx& ctx) {
    const auto group = static_cast<std::size_t>(ctx.lane() >> 2), in_group = static_cast<std::size_t>(ctx.lane() & 3);
    std::uint32_t fa[4]{}, fb[2]{};
    std::int32_t fc[4]{}, fd[4]{};
    for (std::size_t word = 0; word < 4; ++word)
      for (std::size_t byte = 0; byte < 4; ++byte) {
        const std::size_t row = word == 0 || word == 2 ? group : group + 8, column = in_group * 4 + byte + (word < 2 ? 0 : 16);
        fa[word] |= static_cast<std::uint32_t>(a[row][column] & 0xFF) << (8 * byte);
      }
    for (std::size_t word = 0; word < 2; ++word)
      for (std::size_t byte = 0; byte < 4; ++byte) fb[word] |= static_cast<std::uint32_t>(b[in_group * 4 + byte + 16 * word][group] & 0xFF) << (8 * byte);
    for (std::size_t i = 0; i < 4; ++i) fc[i] = c[group + (i < 2 ? 0 : 8)][in_group * 2 + (i & 1)];
    ctx.mma<SignedA, SignedB>(fd, fa, fb, fc);
    for (std::size_t i = 0; i < 4; ++i) out[group + (i < 2 ? 0 : 8)][in_group * 2 + (i & 1)] = fd[i];
  });
  REQUIRE(r.clean());
  return out;
}

template <bool SignedA, bool SignedB>
void compare_random() {
  std::uint32_t seed = 1;
  const auto draw = [&seed](bool is_signed) {
    seed = seed * 1664525U + 1013904223U;
    const int byte = static_cast<int>(seed >> 24);
    return is_signed ? byte - 128 : byte;
  };
  A a{};
  B b{};
  D c{}, want{};
  for (auto& row : a)
    for (int& x : row) x = draw(SignedA);
  for (auto& row : b)
    for (int& x : row) x = draw(SignedB);
  for (std::size_t i = 0; i < 16; ++i)
    for (std::size_t j = 0; j < 8; ++j) {
      want[i][j] = c[i][j] = draw(true) * 1000;
      for (std::size_t k = 0; k < 32; ++k) want[i][j] += a[i][k] * b[k][j];
    }
  REQUIRE(product<SignedA, SignedB>(a, b, c) == want);
}

}  // namespace

TEST_CASE("one-hot matrices find every element of the fragments in its place", "[unit]") {
  for (std::size_t i = 0; i < 16; i += 3)
    for (std::size_t k = 0; k < 32; ++k) {
      A a{};
      B b{};
      a[i][k] = 3;
      for (std::size_t j = 0; j < 8; ++j) b[k][j] = static_cast<int>(j) + 1;
      const D d = product<true, true>(a, b, {});
      for (std::size_t row = 0; row < 16; ++row)
        for (std::size_t j = 0; j < 8; ++j) REQUIRE(d[row][j] == (row == i ? 3 * (static_cast<int>(j) + 1) : 0));
    }
}

TEST_CASE("each element of A, B and C has one place", "[unit]") {
  std::array<int, 16 * 32> a{};
  std::array<int, 32 * 8> b{};
  std::array<int, 16 * 8> c{};
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 16; ++i) ++a[static_cast<std::size_t>(mma::place_of_a(lane, i).row * 32 + mma::place_of_a(lane, i).column)];
    for (int i = 0; i < 8; ++i) ++b[static_cast<std::size_t>(mma::place_of_b(lane, i).row * 8 + mma::place_of_b(lane, i).column)];
    for (int i = 0; i < 4; ++i) ++c[static_cast<std::size_t>(mma::place_of_c(lane, i).row * 8 + mma::place_of_c(lane, i).column)];
  }
  for (const int n : a) REQUIRE(n == 1);
  for (const int n : b) REQUIRE(n == 1);
  for (const int n : c) REQUIRE(n == 1);
}

TEST_CASE("all four sign pairs multiply exactly", "[unit]") {
  compare_random<true, true>();
  compare_random<true, false>();
  compare_random<false, true>();
  compare_random<false, false>();
}

TEST_CASE("a tensor-core product needs the whole warp", "[unit]") {
  const LaunchReport r = run({}, [](SimCtx& c) {
    std::uint32_t a[4]{}, b[2]{};
    std::int32_t s[4]{}, d[4]{};
    if (c.lane() < 31) c.mma<true, true>(d, a, b, s);
  });
  REQUIRE(kinds(r) == std::vector{FindingKind::exited_lane});
}

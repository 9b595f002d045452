#include "reference/sparse_prefill/xattention/blocks.hpp"

#include <cmath>

#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::antidiagonal;
using kvatlas::test::Random;

namespace {

using Mask = std::vector<std::uint8_t>;

struct Problem {
  Array q, k;
};

Problem problem(std::int64_t n, std::int64_t dim, std::uint64_t seed) {
  Random random(seed);
  Problem p{.q = Array({n, dim}), .k = Array({n, dim})};
  for (Array* a : {&p.q, &p.k})
    for (float& f : a->values()) f = 2 * random.normal();
  return p;
}

/// The definition in double: antidiagonal sums of every tile, softmax over reduced rows, mass by block.
std::vector<std::vector<double>> judge(const Grid& g, const Problem& p) {
  const std::int64_t n = p.q.view().dim(0), dim = p.q.view().dim(1), rows = (n + g.stride - 1) / g.stride, blocks = (n + g.block - 1) / g.block;
  std::vector<std::vector<double>> mass(static_cast<std::size_t>(blocks), std::vector<double>(static_cast<std::size_t>(blocks), 0.0));
  for (std::int64_t i = 0; i < rows; ++i) {
    std::vector<double> a(static_cast<std::size_t>(i + 1));
    double sum = 0;
    for (std::int64_t m = 0; m <= i; ++m) {
      double x = 0;
      for (std::int64_t j = 0; j < g.stride; ++j) {
        const std::int64_t tq = i * g.stride + g.stride - 1 - j, tk = m * g.stride + j;
        if (tq < n && tk < n)
          for (std::int64_t c = 0; c < dim; ++c) x += static_cast<double>(p.q.view()(tq, c)) * static_cast<double>(p.k.view()(tk, c));
      }
      sum += a[static_cast<std::size_t>(m)] = std::exp(x / (std::sqrt(static_cast<double>(dim)) * static_cast<double>(g.stride) * g.norm));
    }
    for (std::int64_t m = 0; m <= i; ++m)
      mass[static_cast<std::size_t>(i * g.stride / g.block)][static_cast<std::size_t>(m * g.stride / g.block)] += a[static_cast<std::size_t>(m)] / sum;
  }
  return mass;
}

}  // namespace

TEST_CASE("block masses follow the definition; with stride 1 they are the exact softmax mass", "[unit]") {
  for (const Grid& g : {Grid{.stride = 1, .block = 16}, Grid{.stride = 4, .block = 16}, Grid{.stride = 16, .block = 32, .norm = 2}, Grid{.stride = 16, .block = 16}})
    for (const std::int64_t n : {1, 15, 16, 17, 50, 97}) {
      CAPTURE(g.stride, g.block, n);
      const Problem p = problem(n, 12, static_cast<std::uint64_t>(n));
      const auto ours = block_mass(g, p.q.view(), 0, p.k.view());
      const auto theirs = judge(g, p);
      REQUIRE(ours.size() == theirs.size());
      for (std::size_t i = 0; i < ours.size(); ++i) {
        double total = 0;
        for (std::size_t j = 0; j < ours[i].size(); ++j) {
          REQUIRE(std::abs(static_cast<double>(ours[i][j]) - theirs[i][j]) < 1e-4);
          total += static_cast<double>(ours[i][j]);
          if (j > i) REQUIRE(ours[i][j] == 0.0F);
        }
        // Every reduced row of a block has mass 1.
        const std::int64_t tokens = std::min<std::int64_t>(n, (static_cast<std::int64_t>(i) + 1) * g.block) - static_cast<std::int64_t>(i) * g.block;
        REQUIRE(std::abs(total - static_cast<double>((tokens + g.stride - 1) / g.stride)) < 1e-4);
      }
    }
}

TEST_CASE("queries that come in whole blocks have the masses of the whole prompt, bit for bit", "[unit]") {
  const Grid g{.stride = 8, .block = 32};
  const Problem p = problem(150, 16, 4);
  const auto whole = block_mass(g, p.q.view(), 0, p.k.view());
  for (const std::int64_t first : {32, 64, 96, 128}) {
    const std::int64_t n = std::min<std::int64_t>(64, 150 - first), rows = first + n;
    const auto part = block_mass(g, p.q.view().slice(0, first, n), first, p.k.view().slice(0, 0, rows));
    for (std::size_t i = 0; i < part.size(); ++i)
      for (std::size_t j = 0; j < part[i].size(); ++j) REQUIRE(part[i][j] == whole[static_cast<std::size_t>(first / 32) + i][j]);
  }
}

TEST_CASE("a chunk inside a block counts the missing queries of its block as none", "[unit]") {
  const Grid g{.stride = 4, .block = 16};
  const Problem p = problem(40, 8, 6);
  const auto part = block_mass(g, p.q.view().slice(0, 21, 2), 21, p.k.view());  // queries 21 and 22, of reduced row 5 alone
  REQUIRE(part.size() == 1);
  double total = 0;
  for (const float f : part[0]) total += static_cast<double>(f);
  REQUIRE(std::abs(total - 1.0) < 1e-6);
}

TEST_CASE("the smallest set of heavy blocks that reaches the threshold is kept beside block 0 and the diagonal", "[unit]") {
  const std::vector<float> mass{1, 4, 2, 2, 1};  // total 10, mandatory 2
  const auto keep = [&](double threshold) { return choose_blocks(mass, threshold, Rule::intended); };
  REQUIRE(keep(0) == Mask{1, 0, 0, 0, 1});
  REQUIRE(keep(0.2) == Mask{1, 0, 0, 0, 1});
  REQUIRE(keep(0.21) == Mask{1, 1, 0, 0, 1});
  REQUIRE(keep(0.6) == Mask{1, 1, 0, 0, 1});
  REQUIRE(keep(0.61) == Mask{1, 1, 1, 0, 1});  // of equal masses the lower block
  REQUIRE(keep(0.81) == Mask{1, 1, 1, 1, 1});
  REQUIRE(keep(1) == Mask{1, 1, 1, 1, 1});
  REQUIRE(choose_blocks(std::vector<float>{1, 0, 2, 0, 1}, 1, Rule::intended) == Mask{1, 0, 1, 0, 1});  // nothing without mass
  REQUIRE(choose_blocks(std::vector<float>{3}, 0.5, Rule::intended) == Mask{1});
  REQUIRE(choose_blocks(std::vector<float>{3, 1}, 0, Rule::intended) == Mask{1, 1});
}

TEST_CASE("the released first chunk keeps one block more and counts block 0 among the others", "[unit]") {
  const std::vector<float> mass{1, 4, 2, 2, 1};  // diagonal 1; others 4, 2, 2, 1
  const auto keep = [&](double threshold) { return choose_blocks(mass, threshold, Rule::official); };
  REQUIRE(keep(0) == Mask{1, 0, 0, 0, 1});
  REQUIRE(keep(0.05) == Mask{1, 1, 0, 0, 1});   // the first other whenever anything is required
  REQUIRE(keep(0.1) == Mask{1, 1, 0, 0, 1});    // 1 < 1 does not hold
  REQUIRE(keep(0.11) == Mask{1, 1, 1, 0, 1});   // 1 < 1.1: the sum lags one block behind
  REQUIRE(keep(0.51) == Mask{1, 1, 1, 1, 1});
  REQUIRE(choose_blocks(std::vector<float>{3}, 0.9, Rule::official) == Mask{1});
}

TEST_CASE("the released query chunk is the whole prompt up to 16K and shrinks beyond", "[unit]") {
  REQUIRE(official_chunk(1) == 2048);
  REQUIRE(official_chunk(2049) == 4096);
  REQUIRE(official_chunk(16384) == 16384);
  REQUIRE(official_chunk(16385) == 8192);
  REQUIRE(official_chunk(131072) == 2048);
  REQUIRE(official_chunk(1 << 20) == 2048);
}

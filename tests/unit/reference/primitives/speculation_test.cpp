// Acceptance rules against the distribution that they must keep, and the formulas of speculative decoding.
#include "reference/primitives/speculation.hpp"

#include <cmath>

#include "core/arith64.hpp"
#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

namespace {

Array rows_of(const std::vector<std::vector<double>>& p) {
  Array logits({static_cast<std::int64_t>(p.size()), static_cast<std::int64_t>(p.front().size())});
  for (std::size_t r = 0; r < p.size(); ++r)
    for (std::size_t x = 0; x < p[r].size(); ++x)
      logits.view()(static_cast<std::int64_t>(r), static_cast<std::int64_t>(x)) = static_cast<float>(num::log(p[r][x]));
  return logits;
}

double chi_square(const std::vector<std::int64_t>& seen, const std::vector<double>& p) {
  std::int64_t n = 0;
  for (const std::int64_t s : seen) n += s;
  double sum = 0;
  for (std::size_t x = 0; x < p.size(); ++x) {
    const double expected = p[x] * static_cast<double>(n);
    sum += (static_cast<double>(seen[x]) - expected) * (static_cast<double>(seen[x]) - expected) / expected;
  }
  return sum;
}

constexpr double kTwoDegrees999 = 13.816;  // 99.9% point of chi-square with two degrees of freedom

std::string refusal(const DraftTree& tree) {
  try {
    check_tree(tree, 4, 2, 3);
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("tokens of a round and speed-ups have the values worked out by hand", "[unit]") {
  CHECK(expected_tokens(0.8, 4) == Approx(3.3616).epsilon(1e-12));
  CHECK(expected_tokens(0.9, 6) == Approx(5.2170).margin(5e-5));
  CHECK(expected_tokens(0.7, 3) == Approx(2.5330).epsilon(1e-12));
  CHECK(expected_tokens(0.35, 0) == 1.0);
  CHECK(expected_tokens(1.0, 9) == 10.0);
  for (const double a : {0.1, 0.55, 0.93})
    for (const int g : {1, 5, 12}) CHECK(expected_tokens(a, g) == Approx((1 - std::pow(a, g + 1)) / (1 - a)).epsilon(1e-12));
  CHECK(expected_tokens(std::vector<double>{0.9, 0.5, 0.2}) == Approx(1 + 0.9 + 0.45 + 0.09).epsilon(1e-12));
  CHECK(speculation_speedup(3.3616, 4, 0.1, 1.2) == Approx(3.3616 / 1.6).epsilon(1e-12));
  CHECK(best_draft_length(0.8, 0.0, 1.0) == 64);
  CHECK(best_draft_length(0.1, 0.5, 1.0) == 1);
  // 0.8, c = 0.1, v = 1: 3.3616 / 1.4, 3.6893 / 1.5, 3.9514 / 1.6, 4.1611 / 1.7 ... the best is at 6 drafted tokens.
  CHECK(best_draft_length(0.8, 0.1, 1.0) == 6);
  // Partial rounds between two full ones with a buffer of 20.
  CHECK(partial_rounds(3, 3, 20) == 6);
  CHECK(partial_rounds(4, 4, 20) == 5);
  CHECK(partial_rounds(5, 5, 20) == 4);
  CHECK(partial_rounds(3, 3, 2) == 0);
  CHECK(partial_rounds(3, 3, 3) == 1);
}

TEST_CASE("the chance of acceptance is one less the distance of the distributions", "[unit]") {
  const std::vector<double> p{0.5, 0.3, 0.2}, q{0.2, 0.2, 0.6};
  CHECK(acceptance_of(p, q) == Approx(0.6).epsilon(1e-12));
  CHECK(acceptance_of(p, p) == Approx(1.0).epsilon(1e-12));
}

TEST_CASE("greedy acceptance follows the argmax, the lowest token and the first child of equals", "[unit]") {
  CHECK(argmax(std::vector<float>{1, 3, 3, 2}) == 1);
  CHECK(argmax(std::vector<float>{-0.0F, 0.0F}) == 0);
  CHECK_THROWS_AS(argmax(std::vector<float>{0, std::nanf("")}), InvalidArgument);
  CHECK_THROWS_AS(argmax({}), InvalidArgument);
  // Root wants 2; node 1 holds it, wants 0; node 2 (under 1) holds 0, wants 1; node 3 is a twin of node 2.
  const DraftTree tree{.tokens = {1, 2, 0, 0}, .parent = {-1, -1, 1, 1}, .probability = {}};
  Array logits({5, 3});
  for (const auto& [row, token] : {std::pair{0, 2}, {1, 1}, {2, 0}, {3, 1}, {4, 2}}) logits.view()(row, token) = 1.0F;
  const Verdict verdict = accept_greedy(tree, logits.view());
  CHECK(verdict.path == std::vector<int>{1, 2});
  CHECK(verdict.next == 1);
  CHECK(accept_greedy({}, logits.view()).next == 2);
}

TEST_CASE("rejection sampling of a chain emits the target's distribution", "[unit]") {
  const std::vector<double> p0{0.5, 0.3, 0.2};
  const std::vector<std::vector<double>> after{{0.1, 0.1, 0.8}, {0.6, 0.3, 0.1}, {0.25, 0.5, 0.25}};
  const std::vector<float> q{0.2F, 0.2F, 0.6F};
  std::vector<std::int64_t> first(3), accepted(1);
  std::vector<std::vector<std::int64_t>> second(3, std::vector<std::int64_t>(3));
  const std::uint32_t rounds = 20000;
  for (std::uint32_t r = 0; r < rounds; ++r) {
    DraftTree tree;
    for (std::uint64_t i = 0; i < 2; ++i) {
      const float u = random_uniform({.seed = 77, .layer = 1, .step = r}, i);
      tree.tokens.push_back(u < q[0] ? 0 : u < q[0] + q[1] ? 1 : 2);
      tree.parent.push_back(static_cast<int>(i) - 1);
      tree.probability.push_back(q);
    }
    const Array logits = rows_of({p0, after[static_cast<std::size_t>(tree.tokens[0])], after[static_cast<std::size_t>(tree.tokens[1])]});
    const Verdict v = accept_sampled(tree, logits.view(), 1.0F, {.seed = 5, .step = r});
    std::vector<TokenId> emitted;
    for (const int node : v.path) emitted.push_back(tree.tokens[static_cast<std::size_t>(node)]);
    emitted.push_back(v.next);
    ++first[static_cast<std::size_t>(emitted[0])];
    if (emitted.size() > 1) {
      ++accepted[0];
      ++second[static_cast<std::size_t>(emitted[0])][static_cast<std::size_t>(emitted[1])];
    }
  }
  CHECK(chi_square(first, p0) < kTwoDegrees999);
  for (std::size_t x = 0; x < 3; ++x) CHECK(chi_square(second[x], after[x]) < kTwoDegrees999);
  CHECK(static_cast<double>(accepted[0]) / rounds == Approx(0.6).margin(0.015));
}

TEST_CASE("rejection sampling of a tree emits the target's distribution, chosen and drawn children alike", "[unit]") {
  const std::vector<double> p0{0.5, 0.3, 0.2}, p1{0.15, 0.25, 0.6};
  for (const bool drawn : {false, true}) {
    CAPTURE(drawn);
    const std::vector<float> q{0.5F, 0.1F, 0.4F};
    std::vector<std::int64_t> first(3), second(3);
    for (std::uint32_t r = 0; r < 20000; ++r) {
      // Two children of the root, one child under each.
      DraftTree tree{.tokens = {2, 0, 1, 1}, .parent = {-1, -1, 0, 1}, .probability = {}};
      if (drawn)
        for (std::uint64_t i = 0; i < 4; ++i) {
          const float u = random_uniform({.seed = 78, .layer = 1, .step = r}, i);
          tree.tokens[i] = u < q[0] ? 0 : u < q[0] + q[1] ? 1 : 2;
          tree.probability.push_back(q);
        }
      const Array logits = rows_of({p0, p1, p1, p1, p1});
      const Verdict v = accept_sampled(tree, logits.view(), 1.0F, {.seed = 6, .step = r});
      std::vector<TokenId> emitted;
      for (const int node : v.path) emitted.push_back(tree.tokens[static_cast<std::size_t>(node)]);
      emitted.push_back(v.next);
      ++first[static_cast<std::size_t>(emitted[0])];
      if (emitted.size() > 1) ++second[static_cast<std::size_t>(emitted[1])];
    }
    CHECK(chi_square(first, p0) < kTwoDegrees999);
    CHECK(chi_square(second, p1) < kTwoDegrees999);
  }
}

TEST_CASE("a chosen child that is refused never comes out as the next token", "[unit]") {
  const DraftTree tree{.tokens = {0, 1, 0}, .parent = {-1, -1, -1}, .probability = {}};
  for (std::uint32_t r = 0; r < 500; ++r) {
    const Verdict v = accept_sampled(tree, rows_of({{0.4, 0.4, 0.2}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}}).view(), 1.0F, {.seed = 9, .step = r});
    if (v.path.empty()) CHECK(v.next == 2);
    if (!v.path.empty()) CHECK(v.path[0] < 2);  // the twin of a refused child has no chance left
  }
}

TEST_CASE("temperature sharpens, and equal logits share", "[unit]") {
  const auto even = probabilities(std::vector<float>{2, 2, 2, 2}, 0.7F);
  for (const double p : even) CHECK(p == 0.25);
  const auto sharp = probabilities(std::vector<float>{0, 1}, 0.5F);
  CHECK(sharp[1] == Approx(1 / (1 + std::exp(-2.0))).epsilon(1e-12));
}

TEST_CASE("the mask shows each token its ancestors, the text before it and itself", "[unit]") {
  const DraftTree tree{.tokens = {0, 1, 2}, .parent = {-1, -1, 0}, .probability = {}};
  const std::vector<std::uint8_t> mask = verify_mask(tree, 1);
  CHECK(mask == std::vector<std::uint8_t>{1, 0, 0, 0, 0,
                                          1, 1, 0, 0, 0,
                                          1, 1, 1, 0, 0,
                                          1, 1, 0, 1, 0,
                                          1, 1, 1, 0, 1});
  CHECK(verify_mask({}, 0) == std::vector<std::uint8_t>{1});
  CHECK(levels_of(tree) == std::vector<int>{1, 1, 2});
}

TEST_CASE("trees that cannot be are refused in one sentence", "[unit]") {
  CHECK(refusal({.tokens = {0, 1}, .parent = {-1, 0}, .probability = {}}) == "");
  CHECK(refusal({.tokens = {0, 1, 2, 0, 1}, .parent = {-1, -1, -1, -1, -1}, .probability = {}}) == "draft has 5 nodes, must have at most tree_size (4)");
  CHECK(refusal({.tokens = {0, 1}, .parent = {-1}, .probability = {}}) == "draft has 1 parents, must have one for each of 2 nodes");
  CHECK(refusal({.tokens = {0, 1}, .parent = {-1, 1}, .probability = {}}) == "draft parent[1] is 1, must be -1 or an earlier node");
  CHECK(refusal({.tokens = {3}, .parent = {-1}, .probability = {}}) == "draft token[0] is 3, must be below the vocabulary (3)");
  CHECK(refusal({.tokens = {0, 0, 0}, .parent = {-1, 0, 1}, .probability = {}}) == "draft node 2 is on level 3, must be on at most depth (2)");
  CHECK(refusal({.tokens = {0}, .parent = {-1}, .probability = {{0.0F, 0.5F, 0.5F}}}) ==
        "draft probability[0] gives the drafted token no chance, must be above 0");
  CHECK(refusal({.tokens = {0}, .parent = {-1}, .probability = {{1.0F}}}) == "draft probability[0] has 1 entries, must have the vocabulary's (3)");
}

#include "reference/primitives/window_scores.hpp"

#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "reference/primitives/selection.hpp"
#include "tests/catch.hpp"
#include "tests/support/fixture_f1.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

void require_scores_near(const std::vector<float>& ours, const std::vector<double>& theirs) {
  REQUIRE(ours.size() == theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    CAPTURE(i);
    REQUIRE(std::abs(ours[i] - theirs[i]) < 1e-6);
  }
}

std::vector<std::vector<std::uint64_t>> f1_masses() {
  const Traced f1 = fixture_f1();
  return window_masses(f1.shape().classes.front(), 0, f1.q().slice(1, 4, 2), f1.k()[0]);
}

}  // namespace

TEST_CASE("window masses of the worked example are the sums of its two last softmax rows", "[unit]") {
  const auto masses = f1_masses();
  REQUIRE(masses.size() == 2);
  std::vector<float> head0, head1;
  for (int t = 0; t < 4; ++t) {
    head0.push_back(num::from_mass(masses[0][static_cast<std::size_t>(t)]));
    head1.push_back(num::from_mass(masses[1][static_cast<std::size_t>(t)]));
  }
  require_scores_near(head0, {.363094, .421254, .592840, .183200});
  require_scores_near(head1, {.450889, .302006, .472381, .150336});
}

TEST_CASE("scores of the worked example agree with each order of reductions and pooling", "[unit]") {
  const auto masses = f1_masses();
  ScoreReduce how{.kernel = 1};
  require_scores_near(reduce_masses(masses, 2, how), {.406992, .361630, .532611, .166768});
  how.window = WindowReduce::mean;
  require_scores_near(reduce_masses(masses, 2, how), {.203496, .180815, .266305, .083384});
  how = {.pooling = Pooling::avg, .kernel = 3};
  require_scores_near(reduce_masses(masses, 2, how), {.256207, .433744, .353670, .233126});
  how.pool_first = true;  // averages commute
  require_scores_near(reduce_masses(masses, 2, how), {.256207, .433744, .353670, .233126});
  how = {.pooling = Pooling::max, .kernel = 3};
  require_scores_near(reduce_masses(masses, 2, how), {.406992, .532611, .532611, .532611});
  how.group = GroupReduce::sum;
  require_scores_near(reduce_masses(masses, 2, how), {.813983, 1.065221, 1.065221, 1.065221});
  how.group = GroupReduce::max;
  require_scores_near(reduce_masses(masses, 2, how), {.450889, .592840, .592840, .592840});
  how.pool_first = true;  // maxima commute
  require_scores_near(reduce_masses(masses, 2, how), {.450889, .592840, .592840, .592840});
  how.group = GroupReduce::mean;  // means of maxima do not
  require_scores_near(reduce_masses(masses, 2, how), {(.421254 + .450889) / 2, .532611, .532611, .532611});
}

TEST_CASE("a window longer than the context is refused, one of the whole context leaves nothing to score", "[unit]") {
  const Traced f1 = fixture_f1();
  const LayerClass& c = f1.shape().classes.front();
  REQUIRE(window_masses(c, 0, f1.q(), f1.k()[0])[0].empty());
  REQUIRE_THROWS_WITH(window_masses(c, 0, f1.q(), f1.k()[0].slice(0, 0, 5)),
                      "observation_window is 6, must be at most the context (5)");
}

TEST_CASE("equal query heads of a group reduce to one of them under mean and maximum", "[unit]") {
  for (const int group : {1, 4, 8}) {
    Random random(static_cast<std::uint64_t>(group));
    Array q1({1, 5, 16}), k({1, 40, 16}), q({group, 5, 16});
    for (float& f : q1.values()) f = random.normal();
    for (float& f : k.values()) f = random.normal();
    for (int h = 0; h < group; ++h) std::ranges::copy(q1.values(), q.values().begin() + h * 5 * 16);
    const LayerClass one{.q_heads = 1, .kv_heads = 1, .k_dim = 16, .v_dim = 16}, many{.q_heads = group, .kv_heads = 1, .k_dim = 16, .v_dim = 16};
    const auto a = window_masses(one, 0, q1.view(), k.view()[0]), b = window_masses(many, 0, q.view(), k.view()[0]);
    for (const GroupReduce reduce : {GroupReduce::mean, GroupReduce::max})
      REQUIRE(reduce_masses(a, 5, {.group = reduce}) == reduce_masses(b, 5, {.group = reduce}));  // groups are powers of two
  }
}

TEST_CASE("the query window keeps the newest queries, whatever the chunks", "[unit]") {
  Array q({2, 9, 4});
  for (std::size_t i = 0; i < q.values().size(); ++i) q.values()[i] = static_cast<float>(i);
  QueryWindow whole(2, 4, Dtype::bf16, 3), chunks(2, 4, Dtype::bf16, 3);
  whole.append(q.view());
  for (const auto& [first, n] : {std::pair{0, 1}, std::pair{1, 6}, std::pair{7, 2}}) chunks.append(q.view().slice(1, first, n));
  REQUIRE(whole.count() == 3);
  REQUIRE(whole.read().values() == chunks.read().values());
  REQUIRE(whole.read().view()(1, 0, 0) == q.view()(1, 6, 0));

  std::vector<NamedBuffer> saved;
  whole.buffers("layer0/window_queries", saved);
  REQUIRE(saved.size() == 1);
  REQUIRE(saved[0].bytes.size() == 2 * 3 * 4 * 2);
  QueryWindow loaded(2, 4, Dtype::bf16, 3);
  loaded.load("layer0/window_queries", saved);
  REQUIRE(loaded.read().values() == whole.read().values());
  loaded.load("layer0/window_queries", {});
  REQUIRE(loaded.count() == 0);
  saved[0].bytes.pop_back();
  REQUIRE_THROWS_WITH(loaded.load("layer0/window_queries", saved),
                      "buffer layer0/window_queries has 47 bytes, must be at most 3 whole rows of 16 bytes");
  whole.clear();
  saved.clear();
  whole.buffers("x", saved);
  REQUIRE(saved.empty());
}

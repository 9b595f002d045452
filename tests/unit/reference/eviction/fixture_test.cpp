// Every eviction score on the worked example of support/fixture_f1.hpp, and the tokens that each method keeps of it.
#include <algorithm>
#include <bit>

#include "reference/primitives/eviction/query_scorers.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "tests/catch.hpp"
#include "tests/support/fixture_f1.hpp"

using namespace kvatlas;
using namespace kvatlas::eviction;
using namespace kvatlas::test;

namespace {

/// What a scorer sees of the example, with the last `window` queries at hand; values are given.
struct Shown {
  Traced f1 = fixture_f1();
  LayerClass c = f1.shape().classes.front();
  TokenRows rows{1, 2, 2, Dtype::f32};
  RopeTable rope{c.rope};
  QueryMoments moments{2, 2, QueryMoments::Order::covariance, 0};
  std::int64_t window;

  explicit Shown(std::int64_t w) : window(w) {
    Array v({1, 6, 2});
    v.values() = {1, 0, 0, 2, 1, 1, 3, 0, 0, 1, 1, -1};
    rows.append(f1.k(), v.view());
    moments.append(f1.q());
  }
  Scene scene() const {
    return {.c = c, .place = {}, .rows = rows, .queries = f1.q().slice(1, 6 - window, window), .rope = rope, .moments = &moments};
  }
};

/// Scores of head 0.
std::vector<float> scores_of(const Scorer& scorer, std::int64_t window) { return scorer.score(Shown(window).scene()).front(); }

void require_near(const std::vector<float>& ours, const std::vector<double>& expected, double margin = 2e-6) {
  REQUIRE(ours.size() == expected.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    CAPTURE(i);
    REQUIRE(static_cast<double>(ours[i]) == Approx(expected[i]).margin(margin));
  }
}

std::vector<std::int64_t> kept_of_f1(const std::string& setting) {
  const Traced f1 = fixture_f1();
  const auto cache = f1.open(setting);
  f1.run(*cache, 0, 6);
  cache->end_prefill();
  return tokens_held(*cache);
}

using Kept = std::vector<std::int64_t>;

}  // namespace

TEST_CASE("scores from keys alone are those of the worked example", "[unit]") {
  require_near(scores_of(key_norm(), 1), {-1, -1, -1.414214, -1, -.707107, -1});
  require_near(scores_of(key_difference(), 1), {-.707107, -.707107, -1, .707107, -1, .707107});
  REQUIRE(kept_of_f1("knorm:budget=3") == Kept{0, 1, 4});  // four keys of norm 1: the lowest slots stay
  REQUIRE(kept_of_f1("knorm:budget=3,recent_window=2") == Kept{0, 4, 5});
  REQUIRE(kept_of_f1("keydiff:budget=2") == Kept{3, 5});
}

TEST_CASE("scores from attention are those of the worked example", "[unit]") {
  const ScoreReduce plain{.pooling = Pooling::avg, .kernel = 1};
  require_near(scores_of(window_attention(2_tok, plain), 2), {.406992, .361630, .532611, .166768});
  require_near(scores_of(window_attention(2_tok, {.window = WindowReduce::mean, .pooling = Pooling::avg, .kernel = 1}), 2),
               {.203496, .180815, .266305, .083384});
  require_near(scores_of(window_attention(2_tok, {.pooling = Pooling::avg, .kernel = 3}), 2), {.256207, .433744, .353670, .233126});
  require_near(scores_of(window_attention(2_tok, {.pooling = Pooling::max, .kernel = 3}), 2), {.406992, .532611, .532611, .532611});
  require_near(scores_of(last_attention(), 1), {.206702, .162187, .198179, .097716, .160303, .174913});
  REQUIRE(kept_of_f1("tova:budget=4") == Kept{0, 1, 2, 5});  // the newest is not forced, it scores .1749
  REQUIRE(kept_of_f1("tova:budget=4,recent_window=3") == Kept{0, 3, 4, 5});
  REQUIRE(kept_of_f1("pyramidkv:budget=4,observation_window=2,kernel=1") == Kept{0, 2, 4, 5});
  REQUIRE(kept_of_f1("adakv:budget=4,observation_window=2,kernel=3") == Kept{1, 2, 4, 5});
}

TEST_CASE("expected attention is that of the worked example: Gaussian queries, mean over the group, norm of the value", "[unit]") {
  const ExpectedAttention how{.future = {.sinks = 0_tok, .future_positions = 512_tok}};
  require_near(scores_of(expected_attention(how), 1), {.184477, .378159, .362425, .293029, .173248, .140354});
  const Shown shown(1);
  REQUIRE(shown.moments.mean(0)[0] == Approx(.583333).margin(1e-6));
  REQUIRE(shown.moments.covariance(0)(0, 0) == Approx(.201389).margin(1e-6));
  REQUIRE(shown.moments.covariance(0)(1, 0) == Approx(-.083333).margin(1e-6));
  REQUIRE(shown.moments.covariance(1)(1, 1) == Approx(.534722).margin(1e-6));
}

TEST_CASE("states that learn from every query are those of the worked example", "[unit]") {
  const Traced f1 = fixture_f1();
  Array one_q({1, 6, 2});
  std::copy_n(f1.q().data(), 12, one_q.values().begin());
  const Traced head0(one_q.view(), f1.k());
  const auto keyformer = head0.open("keyformer:noise=false,tau_init=2,tau_end=2,budget=9,recent_window=2");
  head0.run(*keyformer, 0, 6);
  require_near(masses_held(*keyformer), {2.386505, 1.496007, 1.154315, .475909, .383139, .104124});
  // Times below an even share: 3 3 0 3 1 1, in the six lowest bits of a ring of eight.
  const auto scissorhands = head0.open("scissorhands:history=8,budget=9,drop=3,recent_window=1");
  head0.run(*scissorhands, 0, 6);
  const auto buffers = scissorhands->buffers();
  std::vector<int> counts;
  for (const std::byte b : find_buffer(buffers, "layer0/history/head0").bytes) counts.push_back(std::popcount(static_cast<unsigned>(b)));
  REQUIRE(counts == std::vector<int>{3, 3, 0, 3, 1, 1});
}

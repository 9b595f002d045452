// Every eviction score on the worked example of support/fixture_f1.hpp, and the tokens that each method keeps of it.
#include "reference/primitives/eviction/scorers.hpp"
#include "tests/catch.hpp"
#include "tests/support/fixture_f1.hpp"

using namespace kvatlas;
using namespace kvatlas::eviction;
using namespace kvatlas::test;

namespace {

/// Scores of head 0 with the last `window` queries at hand.
std::vector<float> scores_of(const Scorer& scorer, std::int64_t window) {
  const Traced f1 = fixture_f1();
  const LayerClass c = f1.shape().classes.front();
  TokenRows rows(1, 2, 2, Dtype::f32);
  rows.append(f1.k(), f1.k());
  const RopeTable rope(c.rope);
  return scorer.score({.c = c, .place = {}, .rows = rows, .queries = f1.q().slice(1, 6 - window, window), .rope = rope}).front();
}

void require_near(const std::vector<float>& ours, const std::vector<double>& expected) {
  REQUIRE(ours.size() == expected.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    CAPTURE(i);
    REQUIRE(static_cast<double>(ours[i]) == Approx(expected[i]).margin(2e-6));
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

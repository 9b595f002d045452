// Choices by chunks, by blocks and by lot on examples worked by hand.
#include "reference/primitives/eviction/pieces.hpp"

#include "core/errors.hpp"
#include "core/philox.hpp"
#include "tests/catch.hpp"
#include "tests/support/fixture_f1.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::eviction;
using namespace kvatlas::test;

namespace {

using Kept = std::vector<std::int64_t>;

/// Keys of one channel, so that knorm keeps the shortest.
Traced line(std::vector<float> keys) {
  Array k({1, static_cast<std::int64_t>(keys.size()), 2}), q({1, static_cast<std::int64_t>(keys.size()), 2});
  for (std::size_t t = 0; t < keys.size(); ++t) k.view()(0, static_cast<std::int64_t>(t), 0) = keys[t];
  return Traced(q.view(), k.view());
}

Kept kept_of_prompt(const Traced& run, const std::string& setting) {
  const auto cache = run.open(setting);
  run.run(*cache, 0, run.tokens());
  cache->end_prefill();
  return tokens_held(*cache);
}

}  // namespace

TEST_CASE("every piece keeps its own share, the last one of what it has", "[unit]") {
  const Traced run = line({5, 1, 4, 2, 9, 8, 7, 3});
  REQUIRE(kept_of_prompt(run, "chunk:score=knorm,chunk_length=3,compression_ratio=0.5") == Kept{1, 3, 7});  // 1 of 3, 1 of 3, 1 of 2
  REQUIRE(kept_of_prompt(run, "chunk:score=knorm,chunk_length=4,compression_ratio=0.5") == Kept{1, 3, 6, 7});
  REQUIRE(kept_of_prompt(run, "chunk:score=knorm,chunk_length=100,compression_ratio=0.5") == Kept{1, 2, 3, 7});  // one piece: a plain choice
  REQUIRE(kept_of_prompt(run, "chunk:score=knorm,chunk_length=2,compression_ratio=1") == Kept{1, 3, 5, 7});  // one always stays
  REQUIRE(chunks_keep(8, 3, .5) == 3);
  REQUIRE(chunks_keep(6, 3, 0) == 6);
  REQUIRE(kept_of(1000, .9) == 99);  // the truncation of 99.99999999999997
  REQUIRE(kept_of(0, .5) == 0);
}

TEST_CASE("blocks forget early what a plain choice could still have used", "[unit]") {
  // Two tokens are held. Key norms do not depend on company: the best two of all, whatever the block.
  const Traced run = line({5, 1, 4, 2, 9, 8, 7, 3});
  for (const int size : {1, 2, 3, 100}) REQUIRE(kept_of_prompt(run, cat("block:score=knorm,budget=2,block_size=", size)) == Kept{1, 3});
  // keydiff judges by the mean of what is held. Keys of F1: (1,0) (0,1) (1,1) (-1,0) (.5,.5) (0,-1).
  const Traced f1 = fixture_f1();
  REQUIRE(kept_of_prompt(f1, "block:score=keydiff,budget=2,block_size=100") == Kept{3, 5});
  // {0,1,2}: 2 leaves. {0,1,3}: mean (0,1/3): cosines 0, 1, 0; 1 leaves. {0,3,4}: mean along (.2357,.2357) of sums (.707,.707):
  // cosines .707, -.707, 1; 4 leaves. {0,3,5}: mean (0,-1/3): cosines 0, 0, 1; 5 leaves.
  REQUIRE(kept_of_prompt(f1, "block:score=keydiff,budget=2,block_size=1") == Kept{0, 3});
}

TEST_CASE("a lot draws from what the best leave, and repeats itself", "[unit]") {
  const std::vector<float> scores{.1F, .9F, .2F, .8F, .3F, .7F};
  const auto constant = [](std::int64_t) { return .5F; };  // equal luck: the scores decide
  REQUIRE(choose_with_lot(scores, 3, 1, 1.0, constant) == std::vector<float>{0, 1, 0, 1, 0, 1});
  REQUIRE(choose_with_lot(scores, 3, 3, 1.0, [](std::int64_t s) { return s % 2 == 0 ? .9F : .1F; }) == std::vector<float>{1, 0, 1, 0, 1, 0});
  REQUIRE(choose_with_lot(scores, 9, 2, 1.0, constant) == std::vector<float>(6, 1.0F));
  // Odds: of two tokens with scores 0 and 1 the second is drawn with probability e / (1 + e) = .7311.
  const std::vector<float> two{0, 1};
  int second = 0;
  for (std::uint64_t i = 0; i < 4000; ++i)
    second += choose_with_lot(two, 1, 1, 1.0, [&](std::int64_t s) { return random_uniform({.seed = i}, static_cast<std::uint64_t>(s)); })[1] > 0 ? 1 : 0;
  REQUIRE(second / 4000.0 == Approx(.7311).margin(.03));
}

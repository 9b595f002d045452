#include <cmath>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

using Kept = std::vector<std::int64_t>;

/// One head; the query of token t looks at token of[t] alone, with nearly all of its weight; -1: at itself.
Traced looks(const std::vector<int>& of) {
  const auto n = static_cast<std::int64_t>(of.size());
  Array q({1, n, n}), k({1, n, n});
  for (std::int64_t t = 0; t < n; ++t) {
    k.view()(0, t, t) = 1;
    const int at = of[static_cast<std::size_t>(t)];
    q.view()(0, t, at < 0 ? t : at) = 100;
  }
  return Traced(q.view(), k.view());
}

std::vector<int> words(const KvCache& cache, const std::string& component) {
  std::vector<int> out;
  const auto buffers = cache.buffers();
  const auto& bytes = find_buffer(buffers, "layer0/" + component + "/head0").bytes;
  for (std::size_t i = 0; i < bytes.size(); i += 4) out.push_back(std::to_integer<int>(bytes[i]));
  return out;
}

}  // namespace

TEST_CASE("lazy_eviction: a slot knows when it was last attended to and its longest silence", "[unit]") {
  // Prompt of four; then queries 4 .. 8 look at 0, 1, themselves, 0, 0.
  const Traced run = looks({-1, -1, 0, -1, 0, 1, -1, 0, 0});
  const auto cache = run.open("lazy_eviction:budget=20,window=10,threshold=0.01");
  run.run(*cache, 0, 4);
  cache->end_prefill();
  for (std::int64_t t = 4; t < 9; ++t) run.run(*cache, t, 1);
  // Times are positions + 1. The prompt's query 2 leaves no trace: token 0 was silent from its own step 1 to 5.
  CHECK(words(*cache, "last_seen") == std::vector<int>{9, 6, 3, 4, 5, 6, 7, 8, 9});
  CHECK(words(*cache, "interval") == std::vector<int>{4, 4, 0, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("lazy_eviction: an event every window keeps recent tokens and those that attention comes back to", "[unit]") {
  // Token 1 is attended to at 5 and 7, token 3 at 6: the others are never looked at again.
  const Traced run = looks({-1, -1, -1, -1, -1, 1, 3, 1, -1, -1, -1, -1});
  const auto cache = run.open("lazy_eviction:budget=4,window=2,threshold=0.01");
  run.run(*cache, 0, 6);
  cache->end_prefill();
  CHECK(cache->kept(0, 0) == 6_tok);  // the prompt is spared
  run.run(*cache, 6, 1);
  CHECK(cache->kept(0, 0) == 7_tok);
  run.run(*cache, 7, 1);  // second step: 6 and 7 are recent, 1 (silent for 7 - 1 steps) and 3 (6 - 3) came back
  CHECK(tokens_held(*cache) == Kept{1, 3, 6, 7});
  for (std::int64_t t = 8; t < 12; ++t) {
    run.run(*cache, t, 1);
    CHECK(cache->kept(0, 0) == Tokens(t % 2 == 0 ? 5 : 4));
  }
}

TEST_CASE("lazy_eviction: scores by hand: the wider interval holds longer, a product weighs both terms", "[unit]") {
  // Token 0 was attended to at 9 after 9 steps (age 3), token 8 at 10 after 2 (age 2). Sum: 2 s(-3/9) + 2 s(-1/9) = 1.779 against
  // 2 s(-1) + 2 s(-1/2) = 1.293.
  const auto kept = [](const std::string& setting) {
    const Traced run = looks({-1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 8, -1, -1});
    const auto cache = run.open(setting);
    run.run(*cache, 0, 9);
    cache->end_prefill();
    for (std::int64_t t = 9; t < 13; ++t) run.run(*cache, t, 1);
    return tokens_held(*cache);
  };
  CHECK(kept("lazy_eviction:budget=5,window=4,threshold=0.01") == Kept{0, 9, 10, 11, 12});
  CHECK(kept("lazy_eviction:budget=6,window=4,threshold=0.01") == Kept{0, 8, 9, 10, 11, 12});
  CHECK(kept("lazy_eviction:budget=5,window=4,threshold=0.01,combine=product") == Kept{0, 9, 10, 11, 12});
  // Budget and window alike: nothing is scored, and nothing kept beside the slots.
  const Traced run = looks({-1, -1, -1, -1, -1, 0, 0, -1});
  const auto cache = run.open("lazy_eviction:budget=2,window=2");
  run.run(*cache, 0, 4);
  cache->end_prefill();
  for (std::int64_t t = 4; t < 8; ++t) run.run(*cache, t, 1);
  CHECK(tokens_held(*cache) == Kept{6, 7});
  for (const NamedBuffer& b : cache->buffers()) CHECK(b.component != "last_seen");
  const MethodChoice m = parse_choice("lazy_eviction:budget=100");
  CHECK(why_not(*m.method, m.row, uniform_shape(1, 1, 1, 8)) == "budget is 100, must be at least the tokens that always stay (128)");
}

// Small methods on the worked example: scores over all queries, trained directions, lots, and cuts between generated tokens.
#include <algorithm>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/rope.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/primitives/eviction/query_scorers.hpp"
#include "tests/catch.hpp"
#include "tests/support/fixture_f1.hpp"
#include "tests/support/scenario.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

using Kept = std::vector<std::int64_t>;

Kept kept_of_prompt(const Traced& run, const std::string& setting) {
  const auto cache = run.open(setting);
  run.run(*cache, 0, run.tokens());
  cache->end_prefill();
  return tokens_held(*cache);
}

std::string opening(const std::string& setting, const CacheShape& shape, const TensorMap* file) {
  const MethodChoice choice = parse_choice(setting);
  try {
    choice.method->open(choice.row, shape, {.trained = file});
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("observed attention averages over the queries that could see a token", "[unit]") {
  const Traced f1 = fixture_f1();  // scores .402461 .298619 .309683 .107137 .178543 .174913
  REQUIRE(kept_of_prompt(f1, "observed_attention:budget=4") == Kept{0, 1, 2, 4});
  REQUIRE(kept_of_prompt(f1, "observed_attention:budget=2") == Kept{0, 2});
  REQUIRE(kept_of_prompt(f1, "observed_attention:budget=3,recent_window=2") == Kept{0, 4, 5});
  // The mass goes with the prompt: afterwards a cache holds rows alone.
  const auto cache = f1.open("observed_attention:budget=4");
  f1.run(*cache, 0, 3);
  REQUIRE(find_buffer(cache->buffers(), "layer0/mass/head0").bytes.size() == 3 * 8);
  f1.run(*cache, 3, 3);
  cache->end_prefill();
  for (const NamedBuffer& b : cache->buffers()) REQUIRE(b.component == "rows");
}

TEST_CASE("attention within chunks looks both ways, weighs by the value and may be padded as released", "[unit]") {
  // One head, chunk of 2, keys 0 and ln 3 on one channel, queries 1: weights 1/4 and 3/4 from both queries, sums 1/2 and 3/2.
  Array q({1, 3, 2}), k({1, 3, 2}), v({1, 3, 2});
  for (std::int64_t t = 0; t < 3; ++t) q.view()(0, t, 0) = 1;
  k.view()(0, 1, 0) = 1.0986123F;
  v.values() = {3, 4, 1, 0, 2, 0};  // norms 5, 1, 2
  const Traced run(q.view(), k.view());
  TokenRows rows(1, 2, 2, Dtype::f32);
  rows.append(k.view(), v.view());
  const LayerClass& c = run.shape().classes.front();
  const RopeTable rope(c.rope);
  const auto scores = [&](bool scaled, bool padded) {
    return eviction::non_causal_attention({.chunk = 2, .scaled = scaled, .padded = padded, .kernel = 1})
        .score({.c = c, .place = {}, .rows = rows, .queries = q.view(), .rope = rope})
        .front();
  };
  const auto plain = scores(false, false), padded = scores(false, true), scaled = scores(true, false);
  REQUIRE(plain[0] == Approx(.5 * 5));
  REQUIRE(plain[1] == Approx(1.5 * 1));
  REQUIRE(plain[2] == Approx(1.0 * 2));   // alone in its chunk
  REQUIRE(padded[2] == Approx(1.0 * 2));  // half of its query's weight goes to the padding, half of the padding's comes back
  REQUIRE(padded[0] == plain[0]);
  REQUIRE(scaled[1] == Approx(2 * 0.684998).margin(1e-5));  // 3^(1/sqrt 2) / (1 + 3^(1/sqrt 2))
  REQUIRE(kept_of_prompt(fixture_f1(), "non_causal_attn:budget=6") == Kept{0, 1, 2, 3, 4, 5});
}

TEST_CASE("a filter drops keys that point along it, and its file is checked", "[unit]") {
  const Traced f1 = fixture_f1();
  const MethodChoice choice = parse_choice("qfilter:budget=3");
  const TensorMap file{{"layer0.filters", {.dims = {1, 2}, .values = {1, 0}}}};  // first channels 1 0 1 -1 .5 0
  const auto cache = choice.method->open(choice.row, f1.shape(), {.trained = &file});
  f1.run(*cache, 0, 6);
  cache->end_prefill();
  REQUIRE(tokens_held(*cache) == Kept{1, 3, 5});
  REQUIRE(opening("qfilter", f1.shape(), nullptr) == "qfilter needs a file of trained parts");
  const TensorMap none{{"filters", {.dims = {1, 2}, .values = {1, 0}}}};
  REQUIRE(opening("qfilter", f1.shape(), &none) == "trained file has no tensor \"layer0.filters\"");
  const TensorMap wide{{"layer0.filters", {.dims = {2, 2}, .values = {1, 0, 0, 1}}}};
  REQUIRE(opening("qfilter", f1.shape(), &wide) == "tensor \"layer0.filters\" is [2, 2], must be [1, 2]");
  const TensorMap nan{{"layer0.filters", {.dims = {1, 2}, .values = {1, num::infinity()}}}};
  REQUIRE(opening("qfilter", f1.shape(), &nan) == "tensor \"layer0.filters\" must be finite");
}

TEST_CASE("nacl keeps sinks and proxies, the best by their attention and some by lot", "[unit]") {
  const Traced f1 = fixture_f1();  // masses of the window of two: .406992 .361630 .532611 .166768
  REQUIRE(kept_of_prompt(f1, "nacl:budget=4,sinks=0,observation_window=2,random_share=0") == Kept{0, 2, 4, 5});
  REQUIRE(kept_of_prompt(f1, "nacl:budget=4,sinks=1,observation_window=2,random_share=0") == Kept{0, 2, 4, 5});
  REQUIRE(kept_of_prompt(f1, "nacl:budget=4,sinks=2,observation_window=2") == Kept{0, 1, 4, 5});
  // A very cold lot takes the best of the rest.
  REQUIRE(kept_of_prompt(f1, "nacl:budget=4,sinks=0,observation_window=2,random_share=1,temperature=0.01") == Kept{0, 2, 4, 5});
  const MethodChoice choice = parse_choice("nacl:budget=4,sinks=0,observation_window=2,random_share=1,temperature=100");
  std::vector<Kept> seen;
  for (const std::uint64_t seed : {1, 1, 2, 3, 4, 5, 6}) {
    const auto cache = choice.method->open(choice.row, f1.shape(), {.seed = seed});
    f1.run(*cache, 0, 6);
    cache->end_prefill();
    seen.push_back(tokens_held(*cache));
  }
  REQUIRE(seen[0] == seen[1]);
  REQUIRE(std::ranges::count(seen, seen[0]) < 7);  // a warm lot depends on its seed
  const MethodChoice small = parse_choice("nacl:budget=5,sinks=4,observation_window=2");
  REQUIRE(why_not(*small.method, small.row, f1.shape()) == "budget is 5, must be at least the tokens that always stay (6)");
}

TEST_CASE("the decoding press spares the prompt and cuts after every interval", "[unit]") {
  const Traced run = random_traced(2, 1, 60, 4, 9);
  const auto lengths = [&](const std::string& setting) {
    const auto cache = run.open(setting);
    run.run(*cache, 0, 20);
    cache->end_prefill();
    Kept rows{cache->kept(0, 0).value};
    for (std::int64_t t = 20; t < 30; ++t) {
      run.run(*cache, t, 1);
      rows.push_back(cache->kept(0, 0).value);
      const History h{.prompt = 20_tok, .generated = Tokens(t - 19)};
      const MethodChoice choice = parse_choice(setting);
      const Ledger formula = formula_ledger(*choice.method, choice.row, run.shape(), h);
      REQUIRE(formula.total() == count_ledger(cache->buffers()).total());
      REQUIRE(formula.high_water().value >= formula.total().value);
    }
    return rows;
  };
  REQUIRE(lengths("decoding:budget=8,interval=4") == Kept{20, 21, 22, 23, 8, 9, 10, 11, 8, 9, 10});
  REQUIRE(lengths("decoding:budget=8,interval=4,compress_prompt=true") == Kept{8, 9, 10, 11, 8, 9, 10, 11, 8, 9, 10});
  const MethodChoice choice = parse_choice("decoding:budget=8,interval=4");
  const std::int64_t row_bytes = 2 * 4 * 4;
  REQUIRE(formula_ledger(*choice.method, choice.row, run.shape(), {.prompt = 20_tok, .generated = 10_tok}).high_water().value == 23 * row_bytes + 4);
}

TEST_CASE("kvcrush keeps whole pages by attention and by signature", "[unit]") {
  // 14 tokens, every query alike: zero queries spread attention evenly, so early tokens have more of it in sum and the same on average.
  const Array q({1, 14, 2}), k({1, 14, 2});
  const Traced even(q.view(), k.view());
  // 1 sink, 2 recent: 11 between them, 5 pages of 2 and token 11 alone. A budget of 10 is
  // 1 + 2 + 1 tokens and 3 pages. The first pages have the most attention; of those that leave {2, 3, 4} zeros stand for the least.
  REQUIRE(kept_of_prompt(even, "kvcrush:budget=10,page=2,representatives=1,sinks=1,recent_window=2,anchor=zeros,normalize=false") ==
          Kept{0, 1, 2, 3, 4, 7, 8, 11, 12, 13});
  REQUIRE(kept_of_prompt(even, "kvcrush:budget=10,page=2,representatives=1,sinks=1,recent_window=2,anchor=ones,normalize=false") ==
          Kept{0, 1, 2, 3, 4, 5, 6, 11, 12, 13});
  REQUIRE(kept_of_prompt(even, "kvcrush:budget=10,page=2,representatives=0,sinks=1,recent_window=2,anchor=ones,normalize=false") ==
          Kept{0, 1, 2, 3, 4, 5, 6, 11, 12, 13});
  REQUIRE(kept_of_prompt(even, "kvcrush:budget=14,page=2,representatives=1,sinks=1,recent_window=2").size() == 14);
  const MethodChoice small = parse_choice("kvcrush:budget=6,page=2,representatives=1,sinks=1,recent_window=2");
  REQUIRE(why_not(*small.method, small.row, even.shape()) ==
          "budget is 6, must be at least sinks, recent_window and one page more than representatives (7)");
}

TEST_CASE("dms drops long keys when they leave the window, head by head", "[unit]") {
  // Two heads; keys of length 1, 3, 1, 3, ... and the other way round. Threshold -2, window of 2.
  const Array q({2, 9, 2});
  Array k({2, 9, 2});
  for (std::int64_t t = 0; t < 9; ++t) {
    k.view()(0, t, 0) = t % 3 == 0 ? 1.0F : 3.0F;
    k.view()(1, t, 1) = t % 3 == 0 ? 3.0F : 1.0F;
  }
  const Traced run(q.view(), k.view());
  const auto cache = run.open("dms:threshold=-2,recent_window=2");
  run.run(*cache, 0, 6);
  REQUIRE(tokens_held(*cache, 0).size() == 6);
  cache->end_prefill();
  REQUIRE(tokens_held(*cache, 0) == Kept{0, 3, 4, 5});
  REQUIRE(tokens_held(*cache, 1) == Kept{1, 2, 4, 5});
  REQUIRE(count_ledger(cache->buffers()).of("lengths", Side::both) == Bytes(3 * 4));
  run.run(*cache, 6, 1);
  REQUIRE(tokens_held(*cache, 0) == Kept{0, 3, 5, 6});
  REQUIRE(tokens_held(*cache, 1) == Kept{1, 2, 4, 5, 6});
  REQUIRE_THROWS_AS(cache->crop(6_tok), Unsupported);
  run.run(*cache, 7, 2);  // two tokens at once: two leave the window
  REQUIRE(tokens_held(*cache, 0) == Kept{0, 3, 6, 7, 8});
  REQUIRE(tokens_held(*cache, 1) == Kept{1, 2, 4, 5, 7, 8});
  auto saved = cache->buffers();
  const auto loaded = run.open("dms:threshold=-2,recent_window=2");
  loaded->load(saved);
  REQUIRE(digest(loaded->buffers()) == digest(saved));
  for (NamedBuffer& b : saved)
    if (b.component == "lengths") b.bytes[4] ^= std::byte{1};
  REQUIRE_THROWS_WITH(loaded->load(saved), "buffer layer0/lengths does not hold the running sums of the heads' rows");
  // Judging the prompt alone: generated tokens are all kept and can be taken back.
  const auto prompt_only = run.open("dms:threshold=-2,recent_window=2,decoding=false");
  run.run(*prompt_only, 0, 6);
  prompt_only->end_prefill();
  run.run(*prompt_only, 6, 2);
  REQUIRE(tokens_held(*prompt_only, 0) == Kept{0, 3, 4, 5, 6, 7});
  prompt_only->crop(7_tok);
  REQUIRE(tokens_held(*prompt_only, 0) == Kept{0, 3, 4, 5, 6});
  // Without counts plans expect a share: of 1,000 tokens 872 are judged, 218 of them stay.
  const MethodChoice choice = parse_choice("dms");
  REQUIRE(formula_ledger(*choice.method, choice.row, run.shape(), {.prompt = 1000_tok}).of("rows", Side::key) == Bytes((128 + 218) * 2 * 2 * 4));
}

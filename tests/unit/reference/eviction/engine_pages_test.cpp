// What is special to the methods that are written on the eviction engine: worked examples, quirks, closed forms, refusals.
#include <algorithm>
#include <cstring>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

using Kept = std::vector<std::int64_t>;

/// Keys of one head with given norms, along the first channel; queries are given by the caller or zero.
Traced of_norms(const std::vector<float>& norms) {
  const auto n = static_cast<std::int64_t>(norms.size());
  Array q({1, n, 2}), k({1, n, 2});
  for (std::int64_t t = 0; t < n; ++t) k.view()(0, t, 0) = norms[static_cast<std::size_t>(t)];
  return Traced(q.view(), k.view());
}

Kept kept_after_prompt(const Traced& run, const std::string& setting) {
  const auto cache = run.open(setting);
  run.run(*cache, 0, run.tokens());
  cache->end_prefill();
  return tokens_held(*cache);
}

std::string refusal(const std::string& setting) {
  const MethodChoice c = parse_choice(setting);
  return why_not(*c.method, c.row, uniform_shape(2, 4, 2, 8)).value_or("");
}

}  // namespace

TEST_CASE("knorm keeps short keys, and skipped layers keep everything", "[unit]") {
  REQUIRE(kept_after_prompt(of_norms({3, 1, 2}), "knorm:budget=2") == Kept{1, 2});
  REQUIRE(kept_after_prompt(of_norms({3, 1, 2}), "knorm:budget=2,skip_layers=1") == Kept{0, 1, 2});
}

TEST_CASE("identical keys score alike in keydiff: the first tokens stay", "[unit]") {
  REQUIRE(kept_after_prompt(of_norms({2, 2, 2, 2}), "keydiff:budget=2") == Kept{0, 1});
  REQUIRE(kept_after_prompt(of_norms({2, 2, -2, 2}), "keydiff:budget=1") == Kept{2});
}

TEST_CASE("tova holds its budget at every step, the same tokens in every head", "[unit]") {
  const Traced run = random_traced(8, 2, 90, 8, 4);
  const auto cache = run.open("tova:budget=20");
  run.run(*cache, 0, 30);
  cache->end_prefill();
  for (std::int64_t t = 30; t < 90; ++t) {
    run.run(*cache, t, 1);
    REQUIRE(cache->kept(0, 0) == 20_tok);
    REQUIRE(tokens_held(*cache, 0) == tokens_held(*cache, 1));
  }
  REQUIRE(std::ranges::is_sorted(tokens_held(*cache, 0)));
}

TEST_CASE("adakv gives a layer exactly its budget and saves the lengths of its heads", "[unit]") {
  const Traced run = random_traced(4, 4, 80, 8, 12);
  const auto cache = run.open("adakv:budget=20,observation_window=4,kernel=3,floor=0.2");
  run.run(*cache, 0, 80);
  cache->end_prefill();
  std::int64_t total = 0, most = 0;
  for (int h = 0; h < 4; ++h) {
    REQUIRE(cache->kept(0, h) >= Tokens(4 + 3));  // the window, and trunc(16 * 0.2)
    total += cache->kept(0, h).value;
    most = std::max(most, cache->kept(0, h).value);
  }
  REQUIRE(total == 4 * 20);
  REQUIRE(most > 20);
  auto saved = cache->buffers();
  const auto loaded = run.open("adakv:budget=20,observation_window=4,kernel=3,floor=0.2");
  loaded->load(saved);
  REQUIRE(digest(loaded->buffers()) == digest(saved));
  for (NamedBuffer& b : saved)
    if (b.component == "lengths") b.bytes[4] ^= std::byte{1};
  REQUIRE_THROWS_WITH(loaded->load(saved), contains_text("does not hold the running sums of the heads' rows"));
  REQUIRE(kept_after_prompt(run, "adakv:budget=20,observation_window=4,kernel=3,floor=1") ==
          kept_after_prompt(run, "snapkv:budget=20,observation_window=4,kernel=3"));
}

TEST_CASE("lagkv keeps the newest of a short prompt; ranks give every partition its share", "[unit]") {
  const Traced run = random_traced(1, 1, 40, 8, 3);
  REQUIRE(kept_after_prompt(run, "lagkv:budget=5,sinks=2,lag=20") == Kept{0, 1, 37, 38, 39});
  const Kept kept = kept_after_prompt(run, "lagkv:budget=24,sinks=4,lag=8");  // 4 sinks, partitions at 4, 12, 20; 28.. stays
  for (const std::int64_t first : {4, 12, 20})
    REQUIRE(std::ranges::count_if(kept, [&](std::int64_t t) { return t >= first && t < first + 8; }) >= 2);
  REQUIRE(std::ranges::count_if(kept, [](std::int64_t t) { return t < 4 || t >= 28; }) == 16);
}

TEST_CASE("simlayerkv keeps both ends of a lazy layer and all of another", "[unit]") {
  const Traced run = random_traced(2, 1, 60, 8, 8);
  Kept ends{0, 1};
  for (std::int64_t t = 51; t < 60; ++t) ends.push_back(t);
  REQUIRE(kept_after_prompt(run, "simlayerkv:threshold=0,sinks=2,recent_window=10") == ends);
  REQUIRE(kept_after_prompt(run, "simlayerkv:threshold=1,sinks=2,recent_window=10").size() == 60);
  REQUIRE(refusal("simlayerkv:recent_window=4,last_queries=4") == "recent_window is 4, must be above last_queries (4)");
}

TEST_CASE("chunkkv keeps whole chunks, the last and shorter one by its own mean", "[unit]") {
  // Short keys score high: chunks of 4 have means -2, -1, -3, and the last one of two tokens -0.5.
  const Traced run = of_norms({2, 2, 2, 2, 1, 1, 1, 1, 3, 3, 3, 3, .5F, .5F});
  REQUIRE(kept_after_prompt(run, "chunkkv:score=knorm,chunk=4,budget=7,observation_window=1") == Kept{4, 5, 6, 7, 12, 13});
  REQUIRE(kept_after_prompt(run, "chunkkv:score=knorm,chunk=4,budget=2,observation_window=1") == Kept{12, 13});
  REQUIRE(kept_after_prompt(of_norms({3, 1, 2}), "chunkkv:score=knorm,chunk=4,budget=2,observation_window=1") == Kept{1, 2});
}

TEST_CASE("criticalkv's second stage weighs scores by the reach of values", "[unit]") {
  const Traced run = random_traced(2, 1, 30, 8, 19);
  const std::string base = ",budget=10,observation_window=4,kernel=1";
  // With the whole budget in the first stage it is the base score alone; values that grow with the token pull later ones in.
  REQUIRE(kept_after_prompt(run, "criticalkv:first_stage=1" + base) == kept_after_prompt(run, "snapkv:pooling=avg" + base));
  const Kept late = kept_after_prompt(run, "criticalkv:first_stage=0" + base), early = kept_after_prompt(run, "snapkv:pooling=avg" + base);
  std::int64_t a = 0, b = 0;
  for (const std::int64_t t : late) a += t;
  for (const std::int64_t t : early) b += t;
  REQUIRE(a > b);
  REQUIRE(std::ranges::find(late, 0) == late.end());  // its value is zero
  const MethodChoice c = parse_choice("criticalkv:budget=10,observation_window=4");
  const TensorMap wrong{{"layer0.w_o", {{3, 5}, std::vector<float>(15)}}};
  REQUIRE_THROWS_WITH(c.method->open(c.row, run.shape(), {.trained = &wrong}), "tensor \"layer0.w_o\" is [3, 5], must be [any, 16]");
}

TEST_CASE("headkv takes the budgets of its table, the mean over a group", "[unit]") {
  const Traced run = random_traced(4, 2, 40, 8, 23);
  const MethodChoice c = parse_choice("headkv:budget=10,observation_window=4,kernel=1");
  const TensorMap table{{"layer0.head_budgets", {{4}, {1, 2, 7, 9}}}};
  const auto cache = c.method->open(c.row, run.shape(), {.trained = &table});
  run.run(*cache, 0, 40);
  cache->end_prefill();
  REQUIRE(cache->kept(0, 0) == Tokens(4 + 2));  // 1.5 rounds to even
  REQUIRE(cache->kept(0, 1) == Tokens(4 + 8));
  const TensorMap none, below{{"layer0.head_budgets", {{4}, {1, 2, -1, 9}}}};
  REQUIRE_THROWS_WITH(c.method->open(c.row, run.shape(), {.trained = &none}), contains_text("trained file has no tensor \"layer0.head_budgets\""));
  REQUIRE_THROWS_WITH(c.method->open(c.row, run.shape(), {.trained = &below}), contains_text("head_budgets holds -1, must be at least 0"));
}

TEST_CASE("scissorhands lets many tokens leave at once and then none for as long", "[unit]") {
  const Traced run = random_traced(4, 2, 100, 8, 31);
  const auto cache = run.open("scissorhands:budget=20,drop=6,history=12,recent_window=3");
  run.run(*cache, 0, 40);
  cache->end_prefill();
  std::int64_t rows = 15;
  for (std::int64_t t = 40; t < 100; ++t) {
    REQUIRE(cache->kept(0, 1) == Tokens(rows));
    run.run(*cache, t, 1);
    rows = rows == 20 ? 15 : rows + 1;
    const Kept kept = tokens_held(*cache, 0);
    for (std::int64_t recent = t - 2; recent <= t; ++recent) REQUIRE(std::ranges::binary_search(kept, recent));
  }
  REQUIRE(refusal("scissorhands:budget=20,drop=15,recent_window=10") ==
          "budget less the tokens that leave at once is 6, must be at least the tokens that always stay (10)");
}

TEST_CASE("keyformer without noise and at temperature 1 keeps what h2o keeps", "[unit]") {
  const Traced run = random_traced(2, 2, 60, 8, 37);
  const auto a = run.open("keyformer:noise=false,tau_end=1,budget=20,recent_window=8"), b = run.open("h2o:heavy_hitters=12,recent_window=8");
  for (KvCache* c : {a.get(), b.get()}) {
    run.run(*c, 0, 30);
    c->end_prefill();
    for (std::int64_t t = 30; t < 60; ++t) run.run(*c, t, 1);
  }
  REQUIRE(tokens_held(*a) == tokens_held(*b));
  const auto noisy = run.open("keyformer:budget=20,recent_window=8");
  run.run(*noisy, 0, 60);
  noisy->end_prefill();
  REQUIRE(noisy->kept(0, 0) == 20_tok);
}

TEST_CASE("finch moves what it keeps to neighbouring positions", "[unit]") {
  CacheShape shape = uniform_shape(1, 1, 1, 8, Dtype::f32, {.rotary_dim = 8});
  const MethodChoice finch = parse_choice("finch:budget=6,observation_window=3"), full = parse_choice("full");
  Scenario s{.method = finch.method, .shape = shape, .row = finch.row, .prompt = 20, .chunk = 20, .decode = 0, .seed = 3};
  const auto cache = open_cache(s);
  run_prompt(*cache, s);
  // The same rows fed to a plain cache at positions 0 .. 5 answer the next query alike, but for the second rounding of keys.
  const Inputs all = inputs_for(shape, 0, 0, 21, s.seed);
  const auto buffers = cache->buffers();
  const NamedBuffer& values = find_buffer(buffers, "layer0/v_rows/head0");
  const auto plain = full.method->open(full.row, shape, {});
  Array out({1, 1, 8}), expected({1, 1, 8});
  std::int64_t slot = 0;
  const auto step = [&](KvCache& c, std::int64_t token, std::int64_t position, Array& to) {
    c.forward(0, {.q = all.q.view().slice(1, token, 1), .k = all.k.view().slice(1, token, 1), .v = all.v.view().slice(1, token, 1), .positions = {&position, {1}}},
              to.view());
  };
  for (std::int64_t t = 0; t < 20; ++t)
    if (slot < 6 && std::memcmp(values.bytes.data() + slot * 32, all.v.view().row(0, t).data(), 32) == 0) step(*plain, t, slot++, out);
  REQUIRE(slot == 6);
  step(*plain, 20, 6, expected);
  step(*cache, 20, 20, out);
  for (std::size_t i = 0; i < 8; ++i) CHECK(out.values()[i] == Approx(expected.values()[i]).margin(1e-5));
  const auto fresh = open_cache(s);
  REQUIRE_THROWS_WITH(step(*fresh, 0, 5, out), contains_text("those of the prompt must be 0, 1, 2, ..."));
}

TEST_CASE("cur compares the norms of a block, or of the whole prompt; sinks leave last", "[unit]") {
  // Squares 1 4 1 1 of the first block are shares .14 .57 .14 .14, squares 9 9 9 81 of the second .08 .08 .08 .75.
  const Traced run = of_norms({1, 2, 1, 1, 3, 3, 3, 9});
  REQUIRE(kept_after_prompt(run, "cur:sides=key,sinks=1,window=4,budget=3") == Kept{0, 1, 7});
  REQUIRE(kept_after_prompt(run, "cur:sides=key,sinks=1,window=0,budget=3") == Kept{0, 4, 7});
}

TEST_CASE("leverage keeps keys that are far from their mean, whatever the directions when keys lie on a line", "[unit]") {
  const Traced run = of_norms({0, 1, 2, 3, 10});  // mean 3.2
  REQUIRE(kept_after_prompt(run, "leverage:budget=2") == Kept{0, 4});
  REQUIRE(kept_after_prompt(run, "leverage:budget=3") == Kept{0, 1, 4});
}

TEST_CASE("compactor adds leverage of keys to attention times the norm of values", "[unit]") {
  // Queries of zeros look at all keys alike, so values, which number the tokens, decide: the mean of three neighbours is largest
  // at 8. The key of token 6 stands out: its leverage is 2.5 deviations above the mean.
  const Traced run = of_norms({2, 2, 2, 2, 2, 2, 40, 2, 2, 2, 2, 2});
  const std::string rest = ",budget=5,sinks=2,recent_window=2";
  REQUIRE(kept_after_prompt(run, "compactor:blending=0.01" + rest) == Kept{0, 1, 8, 10, 11});
  REQUIRE(kept_after_prompt(run, "compactor:blending=1" + rest) == Kept{0, 1, 6, 10, 11});
}

TEST_CASE("cap weighs the leverage of values by the cosine of key and mean query", "[unit]") {
  Array q({1, 8, 2}), k({1, 8, 2});
  for (std::int64_t t = 0; t < 8; ++t) {
    q.view()(0, t, 0) = t < 2 ? -5.0F : 1.0F;  // queries of sinks do not count
    k.view()(0, t, 0) = t == 3 || t == 5 ? 2.0F : -1.0F;
  }
  const Traced run(q.view(), k.view());
  REQUIRE(kept_after_prompt(run, "cap:tau=5,sinks=2,budget=4") == Kept{0, 1, 3, 5});
  REQUIRE(kept_after_prompt(run, "cap:tau=0,sinks=2,budget=4") == Kept{0, 1, 6, 7});
}

TEST_CASE("pages say why they cannot serve a setting", "[unit]") {
  REQUIRE(refusal("pyramidkv:kernel=4") == "kernel is 4, must be odd");
  REQUIRE(refusal("expected_attention:budget=2") == "budget is 2, must be at least the tokens that always stay (4)");
  REQUIRE(refusal("adakv:normalize=true") == "normalize is true, must be false unless allocation=rounded: an exact total compares scores as they are");
}

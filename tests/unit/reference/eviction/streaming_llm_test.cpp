#include <algorithm>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("StreamingLLM keeps the worked example's tokens after the prompt and after each step", "[unit]") {
  const Traced run = random_traced(2, 1, 12, 8, 1);
  for (const char* positions : {"slot", "true"}) {
    const auto cache = run.open(cat("streaming_llm:sinks=2,recent_window=3,positions=", positions));
    run.run(*cache, 0, 8);
    REQUIRE(cache->kept(0, 0) == 8_tok);  // nothing leaves inside the prompt
    cache->end_prefill();
    REQUIRE(tokens_held(*cache) == std::vector<std::int64_t>{0, 1, 5, 6, 7});
    run.run(*cache, 8, 1);
    REQUIRE(tokens_held(*cache) == std::vector<std::int64_t>{0, 1, 6, 7, 8});
    run.run(*cache, 9, 3);  // several tokens at once: cut after all of them
    REQUIRE(tokens_held(*cache) == std::vector<std::int64_t>{0, 1, 9, 10, 11});
  }
}

TEST_CASE("StreamingLLM at slot positions attends as a text of the kept tokens alone", "[unit]") {
  // After the cut, a step must equal the full cache over the kept tokens renumbered 0, 1, ...
  const CacheShape shape = uniform_shape(1, 4, 2, 16, Dtype::bf16, {.rotary_dim = 16});
  const MethodChoice choice = parse_choice("streaming_llm:sinks=2,recent_window=3");
  const auto cache = choice.method->open(choice.row, shape, {});
  const Inputs in = inputs_for(shape, 0, 0, 9, 5);
  const auto part = [&](std::int64_t first, std::int64_t n, const std::vector<std::int64_t>& positions) {
    return StepInput{.q = in.q.view().slice(1, first, n), .k = in.k.view().slice(1, first, n), .v = in.v.view().slice(1, first, n),
                     .positions = {positions.data(), {n}}};
  };
  Array out({4, 8, 16}), last({4, 1, 16}), expected({4, 1, 16}), unused({4, 1, 16});
  std::vector<std::int64_t> positions{0, 1, 2, 3, 4, 5, 6, 7};
  cache->forward(0, part(0, 8, positions), out.view());
  cache->end_prefill();
  const std::vector<std::int64_t> true_position{8};
  cache->forward(0, part(8, 1, true_position), last.view());

  const auto full = find_method("full").open({}, shape, {});
  std::int64_t slot = 0;
  for (const std::int64_t token : {0, 1, 5, 6, 7, 8}) {
    const std::vector<std::int64_t> at{slot++};
    full->forward(0, part(token, 1, at), token == 8 ? expected.view() : unused.view());
  }
  REQUIRE(last.values() == expected.values());

  const MethodChoice kept_true = parse_choice("streaming_llm:sinks=2,recent_window=3,positions=true");
  const auto other = kept_true.method->open(kept_true.row, shape, {});
  other->forward(0, part(0, 8, positions), out.view());
  other->end_prefill();
  other->forward(0, part(8, 1, true_position), last.view());
  REQUIRE(last.values() != expected.values());
}

TEST_CASE("StreamingLLM holds min(tokens, budget) at each of 210 steps, in all group sizes", "[unit]") {
  for (const int group : {1, 4, 8}) {
    const Traced run = random_traced(group, 1, 220, 4, 3);
    const auto cache = run.open("streaming_llm:sinks=4,recent_window=60");
    run.run(*cache, 0, 10);
    cache->end_prefill();
    for (std::int64_t t = 10; t < 220; ++t) {
      run.run(*cache, t, 1);
      REQUIRE(cache->kept(0, 0) == Tokens(std::min<std::int64_t>(t + 1, 64)));
    }
  }
}

TEST_CASE("StreamingLLM takes tokens back until the first eviction, even in a loaded cache", "[unit]") {
  const Traced run = random_traced(2, 1, 20, 8, 4);
  const auto cache = run.open("streaming_llm:sinks=2,recent_window=10");
  run.run(*cache, 0, 8);
  cache->end_prefill();
  run.run(*cache, 8, 1);
  const auto saved = cache->buffers();
  run.run(*cache, 9, 2);
  cache->crop(9_tok);
  REQUIRE(digest(cache->buffers()) == digest(saved));
  const auto loaded = run.open("streaming_llm:sinks=2,recent_window=10");
  loaded->load(saved);
  REQUIRE_THROWS_WITH(loaded->crop(9_tok), "crop: a loaded cache learns the length of its text from the next step");
  run.run(*loaded, 9, 1);
  loaded->crop(9_tok);
  REQUIRE(digest(loaded->buffers()) == digest(saved));
  run.run(*cache, 9, 5);
  REQUIRE_THROWS_WITH(cache->crop(9_tok), "crop to 9 of 14 tokens: the method has dropped or changed what would come back");
  cache->crop(14_tok);  // takes nothing back
}

TEST_CASE("StreamingLLM's ledger of the official demo counts 2,004 tokens of Llama-2-7B", "[unit]") {
  const MethodChoice choice = parse_choice("streaming_llm");
  const CacheShape llama = uniform_shape(32, 32, 32, 128, Dtype::f16, {.rotary_dim = 128});
  const Ledger ledger = choice.method->ledger_formula(choice.row, llama, {.prompt = 5000_tok, .generated = 1_tok}, {});
  REQUIRE(ledger.total() == 1'050'673'152_B);
  REQUIRE(ledger.prefill() == dense_bytes(llama, 5000_tok));
}

TEST_CASE("StreamingLLM says why it cannot serve a setting", "[unit]") {
  const Method& m = find_method("streaming_llm");
  CacheShape shape = uniform_shape(1, 2, 1, 8);
  REQUIRE(why_not(m, parse_choice("streaming_llm:sinks=0,recent_window=0").row, shape) ==
          "sinks + recent_window is 0, must be at least 1");
  shape.classes[0].window = 128_tok;
  REQUIRE(why_not(m, defaults_of(m.params), shape) ==
          "window is 128 in layer 0, must be 0: a sliding window evicts by its own rule");
  shape.classes[0].window = 0_tok;
  shape.classes[0].kind = RowKind::latent;
  REQUIRE(why_not(m, defaults_of(m.params), shape) ==
          "latent rows serve all heads: a choice of tokens by kv head has no meaning there");
  const Traced run = random_traced(2, 1, 4, 8, 1);
  const auto cache = run.open("streaming_llm");
  const std::vector<std::uint8_t> tree{1, 0, 1, 1};
  const std::vector<std::int64_t> positions{0, 1};
  Array out({2, 2, 8});
  REQUIRE_THROWS_AS(cache->forward(0, {.q = run.q().slice(1, 0, 2), .k = run.k().slice(1, 0, 2), .v = run.k().slice(1, 0, 2),
                                       .positions = {positions.data(), {2}},
                                       .mask = {MaskKind::tree, {tree.data(), {2, 2}}}},
                                   out.view()),
                    Unsupported);
  REQUIRE(cache->kept(0, 0) == 0_tok);
}

TEST_CASE("StreamingLLM: a saved cache whose heads hold different counts is refused", "[unit]") {
  const Traced run = random_traced(2, 2, 12, 8, 1);
  const auto cache = run.open("streaming_llm:sinks=2,recent_window=3");
  run.run(*cache, 0, 8);
  cache->end_prefill();
  auto saved = cache->buffers();
  const std::uint64_t before = digest(saved);
  for (NamedBuffer& b : saved)
    if (b.name.ends_with("/head1")) b.bytes.resize(b.bytes.size() / 5 * 4);
  CHECK_THROWS_WITH(cache->load(saved), "buffer layer0/k_rows/head1 holds 4 tokens, must hold 5 as in every head");
  CHECK(digest(cache->buffers()) == before);
}

#include <algorithm>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace locret_cases {  // a batch of tests compiles as one file

namespace {

using Kept = std::vector<std::int64_t>;

/// One head of two channels whose keys carry the scores of their tokens in the first channel, and retaining heads that read them off.
struct Scored {
  Traced run;
  TensorMap heads;

  explicit Scored(const std::vector<float>& scores) : run(of(scores)) {
    heads["layer0.fc1"] = {.dims = {2, 6}, .values = {0, 0, 1, 0, 0, 0, 0, 0, -1, 0, 0, 0}};  // the key's first channel, and its negative
    heads["layer0.fc2"] = {.dims = {1, 2}, .values = {1, -1}};                                // silu(x) - silu(-x) = x
  }
  static Traced of(const std::vector<float>& scores) {
    const auto n = static_cast<std::int64_t>(scores.size());
    Array q({1, n, 2}), k({1, n, 2});
    for (std::int64_t t = 0; t < n; ++t) k.view()(0, t, 0) = scores[static_cast<std::size_t>(t)];
    return Traced(q.view(), k.view());
  }
  std::unique_ptr<KvCache> open(const std::string& setting) const {
    const MethodChoice m = parse_choice(setting);
    return m.method->open(m.row, run.shape(), {.trained = &heads});
  }
};

}  // namespace

TEST_CASE("locret: each chunk leaves the best of its tokens and of those before it, the newest of them as long as chunks follow", "[unit]") {
  // Chunks of four of the first eight tokens, two last ones. After the first chunk token 3 is stable, and 1 the best of the others.
  const Scored s({5, 9, 1, 2, 7, 3, 8, 4, 0, 0});
  const std::string setting = "locret:budget=2,chunk=4,recent_window=2,stabilizers=1,last_tokens=announced";
  const auto cache = s.open(setting);
  cache->notify({.kind = EventKind::prompt_length, .last = 10});
  s.run.run(*cache, 0, 4);
  CHECK(tokens_held(*cache) == Kept{1, 3});
  s.run.run(*cache, 4, 4);  // the last choice: no token is stable
  CHECK(tokens_held(*cache) == Kept{1, 6});
  s.run.run(*cache, 8, 2);
  cache->end_prefill();
  CHECK(tokens_held(*cache) == Kept{1, 6, 8, 9});
  // The prompt's pieces are no chunks of the method.
  const auto pieces = s.open(setting);
  pieces->notify({.kind = EventKind::prompt_length, .last = 10});
  for (std::int64_t t = 0; t < 9; t += 3) s.run.run(*pieces, t, 3);
  s.run.run(*pieces, 9, 1);
  pieces->end_prefill();
  CHECK(digest(pieces->buffers()) == digest(cache->buffers()));
}

TEST_CASE("locret: who does not know the prompt's length spares the newest tokens at every chunk", "[unit]") {
  const Scored s({5, 9, 1, 2, 7, 3, 8, 4, 0, 0});
  const auto cache = s.open("locret:budget=2,chunk=4,recent_window=2,stabilizers=3");
  s.run.run(*cache, 0, 4);  // 2 and 3 are spared, 1 is stable behind them, 0 the best of the rest
  CHECK(tokens_held(*cache) == Kept{0, 1, 2, 3});
  s.run.run(*cache, 4, 4);  // 6 and 7 are spared, 5 is stable, 1 the best
  CHECK(tokens_held(*cache) == Kept{1, 5, 6, 7});
  s.run.run(*cache, 8, 2);
  cache->end_prefill();  // 8 and 9 are spared
  CHECK(tokens_held(*cache) == Kept{1, 6, 8, 9});
  // As many stabilizers as the budget: a sliding window.
  const auto sliding = s.open("locret:budget=2,chunk=4,recent_window=0,stabilizers=2");
  s.run.run(*sliding, 0, 8);
  CHECK(tokens_held(*sliding) == Kept{6, 7});
}

TEST_CASE("locret: announcements and trained files that cannot be are refused", "[unit]") {
  const Scored s({1, 2, 3, 4});
  const auto cache = s.open("locret:last_tokens=announced,chunk=2,budget=1");
  REQUIRE_THROWS_WITH(s.run.run(*cache, 0, 2), contains_text("prompt_length must be told before the first token"));
  REQUIRE_THROWS_WITH(cache->notify({.kind = EventKind::prompt_length}), contains_text("prompt_length is 0, must be from 1"));
  cache->notify({.kind = EventKind::prompt_length, .last = 3});
  s.run.run(*cache, 0, 2);
  REQUIRE_THROWS_WITH(cache->notify({.kind = EventKind::prompt_length, .last = 4}), contains_text("prompt_length comes after the prompt's first token"));
  REQUIRE_THROWS_WITH(s.run.run(*cache, 2, 2), contains_text("the prompt has 4 tokens, 3 were announced"));
  REQUIRE_THROWS_WITH(cache->end_prefill(), contains_text("the prompt ends with 2 tokens, 3 were announced"));
  REQUIRE_THROWS_WITH(s.open("locret")->notify({.kind = EventKind::prompt_length, .last = 4}), contains_text("last_tokens is unknown, must be announced"));
  Scored wrong({1, 2});
  wrong.heads["layer0.fc2"] = {.dims = {1, 3}, .values = {1, 1, 1}};
  REQUIRE_THROWS_WITH(wrong.open("locret"), contains_text("layer0.fc2 is [1, 3], must be [1, 2], the hidden units of fc1"));
  const MethodChoice m = parse_choice("locret");
  REQUIRE_THROWS_WITH(m.method->open(m.row, s.run.shape(), {}), contains_text("locret needs a file of trained parts"));
}

TEST_CASE("locret: a prompt saved in its middle goes on where it was", "[unit]") {
  const Scored s({5, 9, 1, 2, 7, 3, 8, 4, 0, 0});
  const std::string setting = "locret:budget=2,chunk=4,recent_window=2,stabilizers=1,last_tokens=announced";
  const auto cache = s.open(setting), other = s.open(setting);
  cache->notify({.kind = EventKind::prompt_length, .last = 10});
  s.run.run(*cache, 0, 6);
  other->load(cache->buffers());
  for (KvCache* c : {cache.get(), other.get()}) {
    s.run.run(*c, 6, 4);
    c->end_prefill();
  }
  CHECK(digest(other->buffers()) == digest(cache->buffers()));
}

TEST_CASE("locret: a long prompt's plan attends to the budget, not to the text", "[unit]") {
  const CacheShape shape = uniform_shape(2, 8, 2, 128, Dtype::bf16, {.rotary_dim = 128});
  const MethodChoice m = parse_choice("locret"), full = parse_choice("full");
  const auto attention = [&](const MethodChoice& c, Tokens prompt) {
    double flops = 0;
    const Plan plan = c.method->prefill_plan(c.row, shape, {.prompt = prompt}, {});
    for (const KernelCall& call : plan.calls())
      if (call.kernel == KernelId::prefill_attention) flops += call.operations.tensor_flops * call.launches;
    return flops;
  };
  CHECK(attention(m, 2000_tok) == Approx(attention(full, 2000_tok)));
  CHECK(attention(m, 128000_tok) < 0.2 * attention(full, 128000_tok));
  CHECK(attention(m, 256000_tok) < 2.1 * attention(m, 128000_tok));  // linear in the prompt
}

}  // namespace locret_cases

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace freecache_cases {  // a batch of tests compiles as one file

namespace {

CacheShape small_shape() { return uniform_shape(2, 4, 2, 16, Dtype::bf16, {.base = 10000.0, .rotary_dim = 16}); }

std::unique_ptr<KvCache> open(const std::string& setting) {
  const MethodChoice m = parse_choice(setting);
  return m.method->open(m.row, small_shape(), {});
}

/// Tokens [first, end) of a text through both layers, each seeing all others of the call; outputs of the newest `keep` of them.
std::vector<float> forward(KvCache& cache, std::int64_t first, std::int64_t end, std::uint64_t text, std::int64_t keep) {
  const CacheShape shape = small_shape();
  std::vector<float> outputs;
  for (const int layer : {0, 1}) {
    const Inputs in = inputs_for(shape, layer, first, end - first, text);
    StepInput step = in.step();
    step.mask.kind = MaskKind::bidirectional;
    Array out({4, end - first, 16});
    cache.forward(layer, step, out.view());
    for (int h = 0; h < 4; ++h)
      for (std::int64_t i = end - first - keep; i < end - first; ++i) outputs.insert(outputs.end(), out.view().row(h, i).begin(), out.view().row(h, i).end());
  }
  return outputs;
}

}  // namespace

TEST_CASE("freecache: two blocks of three steps compute the tokens that the rule counts, over rows of the last step before a freeze", "[unit]") {
  // 20 tokens, 8 of them a prompt, blocks of 6. Texts 1 to 6 are what the model sees in steps 1 to 6: other rows for the same tokens.
  const auto cache = open("freecache:block=6,behind=6");
  std::int64_t computed = 20;
  forward(*cache, 0, 20, 1, 1);
  cache->end_prefill();
  for (const std::uint64_t text : {2, 3}) {
    cache->crop(8_tok);
    forward(*cache, 8, 20, text, 1);
    computed += 12;
  }
  std::vector<float> last;
  for (const std::uint64_t text : {4, 5, 6}) {
    cache->crop(14_tok);
    last = forward(*cache, 14, 20, text, 6);
    computed += 6;
    CHECK(cache->kept(1, 1) == 20_tok);
  }
  CHECK(computed == 20 + (3 - 1) * (20 - 8) + 3 * (20 - 8 - 6));
  // The prompt is that of step 1, block 0 that of step 3 (its last), block 1 that of step 6.
  const auto expected = open("full");
  forward(*expected, 0, 8, 1, 1);
  forward(*expected, 8, 14, 3, 1);
  CHECK(forward(*expected, 14, 20, 6, 6) == last);
}

TEST_CASE("freecache: with nothing frozen every step is that of a model without a cache", "[unit]") {
  const auto cache = open("freecache:block=20");
  forward(*cache, 0, 20, 1, 20);
  cache->crop(0_tok);
  const auto again = forward(*cache, 0, 20, 2, 20);
  CHECK(again == forward(*open("full"), 0, 20, 2, 20));
}

TEST_CASE("freecache: a step writes the block and what lies behind it, over the whole text", "[unit]") {
  const CacheShape shape = uniform_shape(32, 32, 32, 128, Dtype::bf16);  // LLaDA-8B
  const MethodChoice m = parse_choice("freecache:block=32,behind=96"), full = parse_choice("full");
  const History text{.prompt = 512_tok};
  const auto only = [](const Plan& plan, KernelId kernel) {
    std::vector<KernelCall> calls;
    for (const KernelCall& call : plan.calls())
      if (call.kernel == kernel) calls.push_back(call);
    REQUIRE(calls.size() == 1);
    return calls.front();
  };
  const Plan step = m.method->decode_plan(m.row, shape, text, {}), first = m.method->prefill_plan(m.row, shape, text, {});
  CHECK(only(step, KernelId::prefill_attention).operations.tensor_flops == Approx(4.0 * 128 * 512 * 128 * 32));
  CHECK(only(first, KernelId::prefill_attention).operations.tensor_flops == Approx(4.0 * 512 * 512 * 128 * 32));
  CHECK(only(step, KernelId::append).traffic.write_bytes == std::int64_t{128} * 32 * 2 * 128 * 2);
  CHECK(m.method->ledger_formula(m.row, shape, text, {}).total() == full.method->ledger_formula(full.row, shape, text, {}).total());
}

}  // namespace freecache_cases

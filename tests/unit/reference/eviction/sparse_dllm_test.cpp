#include <algorithm>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/eviction/sparse_dllm/importance.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace sparse_dllm_cases {  // a batch of tests compiles as one file

namespace {

using Kept = std::vector<std::int64_t>;
using methods::sparse_dllm_parts::block_of;

/// Six tokens, the block is 3 and 4, one token lies behind it. The mean query is (1/2, 1/2): keys outside score 1, -1, 1/2 and 3.
Kept kept_of(const std::string& setting) {
  Array q({1, 6, 2}), k({1, 6, 2});
  q.values() = {9, 9, 9, 9, 9, 9, 1, 0, 0, 1, -9, -9};
  k.values() = {2, 0, 0, -2, 0, 1, 50, 50, 50, 50, 6, 0};
  const Traced run(q.view(), k.view());
  const auto cache = run.open("sparse_dllm:block=2,behind=1," + setting);
  run.run(*cache, 0, 6);
  cache->end_prefill();
  return tokens_held(*cache);
}

/// Tokens [first, first + n) of a text through all layers, each token seeing all others of the call; `seed` makes the text.
std::vector<float> both_ways(KvCache& cache, const CacheShape& shape, std::int64_t first, std::int64_t n, std::uint64_t seed) {
  std::vector<float> outputs;
  const LayerClass& c = shape.classes.front();
  for (const int layer : c.layers) {
    const Inputs in = inputs_for(shape, layer, first, n, seed);
    StepInput step = in.step();
    step.mask.kind = MaskKind::bidirectional;
    Array out({c.q_heads, n, c.v_dim});
    cache.forward(layer, step, out.view());
    outputs.insert(outputs.end(), out.values().begin(), out.values().end());
  }
  return outputs;
}

CacheShape small_shape() { return uniform_shape(2, 4, 2, 16, Dtype::bf16, {.base = 10000.0, .rotary_dim = 16}); }

}  // namespace

TEST_CASE("sparse_dllm: the worked example, and the block in texts that are too short for it", "[unit]") {
  CHECK(kept_of("keep_fraction=0.5,kernel=1") == Kept{0, 5});
  CHECK(kept_of("keep_fraction=0.75,kernel=1") == Kept{0, 2, 5});
  CHECK(kept_of("keep_fraction=0.5,kernel=3") == Kept{2, 5});      // pooled over the gap of the block: 1, 1, 3, 3
  CHECK(kept_of("keep_fraction=0.75,kernel=3") == Kept{0, 2, 5});  // of equal scores the lower slot
  CHECK(kept_of("keep_fraction=1") == Kept{0, 1, 2, 5});
  CHECK(kept_of("keep_fraction=0.2").empty());
  const auto same = [](const auto& block, std::int64_t first, std::int64_t size) { return block.first == first && block.size == size; };
  CHECK(same(block_of(90, 16, 34), 40, 16));
  CHECK(same(block_of(10, 16, 2), 0, 8));
  CHECK(same(block_of(3, 16, 8), 0, 1));
  CHECK(same(block_of(1, 1, 1), 0, 1));
}

TEST_CASE("sparse_dllm: with everything outside kept a denoising step is bidirectional attention over the whole text", "[unit]") {
  const CacheShape shape = small_shape();
  const MethodChoice m = parse_choice("sparse_dllm:keep_fraction=1,block=8"), f = parse_choice("full");
  const auto cache = m.method->open(m.row, shape, {}), full = f.method->open(f.row, shape, {});
  CHECK(both_ways(*cache, shape, 0, 40, 3) == both_ways(*full, shape, 0, 40, 3));
  cache->end_prefill();
  CHECK(cache->kept(1, 0) == 32_tok);
  full->crop(32_tok);
  for (const std::uint64_t step : {5, 6, 7}) {  // other tokens of the block in every step
    CHECK(both_ways(*cache, shape, 32, 8, step) == both_ways(*full, shape, 32, 8, step));
    cache->crop(40_tok);  // the text was 40 tokens long: the block's rows go, what was kept stays
    full->crop(32_tok);
    CHECK(cache->kept(0, 1) == 32_tok);
  }
}

TEST_CASE("sparse_dllm: a step leaves no trace once its rows were taken back, and a block inside the text is served", "[unit]") {
  const CacheShape shape = small_shape();
  const MethodChoice m = parse_choice("sparse_dllm:block=8,behind=12");
  const auto twice = m.method->open(m.row, shape, {}), once = m.method->open(m.row, shape, {});
  for (KvCache* cache : {twice.get(), once.get()}) {
    both_ways(*cache, shape, 0, 50, 3);
    cache->end_prefill();
    CHECK(cache->kept(0, 0) == 21_tok);  // half of 42
  }
  both_ways(*twice, shape, 30, 8, 9);
  twice->crop(50_tok);
  CHECK(both_ways(*twice, shape, 30, 8, 4) == both_ways(*once, shape, 30, 8, 4));
  CHECK(digest(twice->buffers()) == digest(once->buffers()));
  REQUIRE_THROWS_WITH(twice->crop(49_tok), contains_text("the method has dropped or changed what would come back"));
}

TEST_CASE("sparse_dllm: kept tokens, bytes and the kernels of a denoising step", "[unit]") {
  const CacheShape shape = uniform_shape(32, 32, 32, 128, Dtype::bf16);  // LLaDA-8B
  const MethodChoice m = parse_choice("sparse_dllm");
  const History text{.prompt = 512_tok}, in_step{.prompt = 512_tok, .generated = 32_tok};
  const std::int64_t row = std::int64_t{2} * 32 * 128 * 2 * 32;
  CHECK(m.method->ledger_formula(m.row, shape, text, {}).total().value == 240 * row);  // half of 480
  CHECK(m.method->ledger_formula(m.row, shape, in_step, {}).total().value == 272 * row);
  int attends = 0;
  const Plan plan = m.method->decode_plan(m.row, shape, in_step, {});
  for (const KernelCall& call : plan.calls())
    if (call.kernel == KernelId::decode_attention) {
      ++attends;
      CHECK(call.queries == 32);
      CHECK(call.length == 272);
      CHECK(call.launches == 32);
    }
  CHECK(attends == 1);
  const Plan first = m.method->prefill_plan(m.row, shape, text, {});
  for (const KernelCall& call : first.calls())
    if (call.kernel == KernelId::prefill_attention) {
      CHECK(call.launches == 64);
      CHECK(call.operations.tensor_flops == Approx(4.0 * 512 * 512 * 128 * 32));  // every pair of the text
    }
  const MethodChoice even = parse_choice("sparse_dllm:kernel=4");
  CHECK(why_not(*even.method, even.row, shape) == "kernel is 4, must be odd");
}

}  // namespace sparse_dllm_cases

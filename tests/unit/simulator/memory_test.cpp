#include "core/errors.hpp"
#include "models/registry.hpp"
#include "simulator/evaluator.hpp"
#include "simulator/step_model.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

Evaluator on(const char* model, const char* gpu, const char* recipe = "full", int tp = 1) {
  return Evaluator({.model = &models::find_model(model), .gpu = parse_gpu(gpu), .recipe = Recipe::parse(recipe), .tp = tp});
}

}  // namespace

TEST_CASE("Llama-3.1-8B at 32K fits an RTX 4090 because its 24 are GiB", "[unit]") {
  const Memory m = on("llama-3.1-8b", "rtx-4090").memory(Tokens(32768), Tokens(32768), 1);
  CHECK(m.weights_bytes == 8030261248.0 * 2);
  CHECK(m.cache_bytes == 32768.0 * 131072);
  // Profile 0.8 GB; 8192 tokens of a chunk with 4 hidden rows and the widest product (28,672 + 4,096); one row of logits.
  CHECK(m.workspace_bytes == 800e6 + 8192.0 * (4 * 4096 + 28672 + 4096) * 2 + 128256.0 * 4);
  CHECK(m.peak_bytes == m.weights_bytes + m.cache_bytes + m.workspace_bytes);
  CHECK(m.available_bytes == 0.9 * 24 * 0x1p30);
  CHECK(m.fits);
  CHECK(m.max_batch == 1);
  CHECK(m.kv_tokens == static_cast<std::int64_t>((m.available_bytes - m.weights_bytes - m.workspace_bytes) / 131072));
  CHECK(m.binding == "cache memory binds at 1 sequence of 32768 tokens; 21.60 GiB (0.9 of 24.00 GiB on RTX-4090)");

  const Memory decimal = on("llama-3.1-8b", "rtx-4090:memory=24GB").memory(Tokens(32768), Tokens(32768), 1);
  CHECK_FALSE(decimal.fits);
  CHECK(decimal.max_batch == 0);
}

TEST_CASE("a cache beyond 2^61 bytes is refused", "[unit]") {
  const Evaluator e = on("llama-3.1-8b", "h100");
  // 2^26 tokens of 2^17 bytes: 2^18 sequences hold 2^61 bytes, one more is too many.
  CHECK(e.memory(Tokens(1 << 26), Tokens(1 << 26), 1 << 18).cache_bytes == 0x1p61);
  CHECK(e.step(Tokens(1 << 26), 1 << 18).step_s > 0);
  const char* sentence = "context x batch is 67108864 x 1048576: an uncompressed cache of llama-3.1-8b would take 9.22e+18 bytes, must be at most 2^61";
  CHECK_THROWS_WITH(e.step(Tokens(1 << 26), 1 << 20), sentence);
  CHECK_THROWS_WITH(e.memory(Tokens(1 << 26), Tokens(1 << 26), 1 << 20), sentence);
  CHECK_THROWS_WITH(e.prefill_s(Tokens(1 << 26), 1 << 20), sentence);
}

TEST_CASE("a cache that shrinks now and then needs room for its largest size", "[unit]") {
  // FreqKV holds 2,110 slots at 65,536 tokens and 4,096 before every compression.
  const Evaluator e = on("llama-3.1-8b", "h100", "freqkv");
  CHECK(e.memory(Tokens(4096), Tokens(65536), 2).cache_bytes == 2 * 4096.0 * 131072);
  CHECK(e.memory(Tokens(1024), Tokens(2048), 2).cache_bytes == 2 * 2048.0 * 131072);
  CHECK(e.memory(Tokens(4096), Tokens(65536), 1).max_batch == e.memory(Tokens(4096), Tokens(4096), 1).max_batch);
}

TEST_CASE("a sequence owns whole pages", "[unit]") {
  const Evaluator e = on("llama-3.1-8b", "h100");
  CHECK(e.memory(Tokens(33), Tokens(33), 1).cache_bytes == 48.0 * 131072);
  CHECK(e.memory(Tokens(32), Tokens(32), 2).cache_bytes == 64.0 * 131072);
}

TEST_CASE("the sentence of what binds names weights, cache or the uncompressed prompt", "[unit]") {
  CHECK(on("llama-3.1-70b", "h100").memory(Tokens(1024), Tokens(1024), 1).binding.find("weights take 131.4") == 0);
  const Memory full = on("llama-3.1-8b", "h100").memory(Tokens(32768), Tokens(32768), 64);
  CHECK_FALSE(full.fits);
  CHECK(full.binding.find("the cache of 64 sequences of 32768 tokens takes 256.00 GiB") == 0);
  CHECK(full.binding.find(cat("enough for ", full.max_batch)) != std::string::npos);
}

TEST_CASE("max_batch is the last batch that fits", "[unit]") {
  for (const char* gpu : {"h100", "a100", "rtx-4090", "b200"})
    for (const std::int64_t context : {1000, 4096, 20000}) {
      const Evaluator e = on("llama-3.1-8b", gpu);
      const std::int64_t most = e.memory(Tokens(context), Tokens(context), 1).max_batch;
      CAPTURE(gpu, context, most);
      REQUIRE(most >= 1);
      CHECK(e.step(Tokens(context), static_cast<int>(most)).fits);
      CHECK_FALSE(e.step(Tokens(context), static_cast<int>(most) + 1).fits);
    }
}

TEST_CASE("tensor parallelism splits kv heads until each rank has one, then repeats them; latents stay whole", "[unit]") {
  const auto cache = [](const char* model, int tp) { return on(model, "h200", "full", tp).memory(Tokens(4096), Tokens(4096), 1).cache_bytes; };
  CHECK(cache("llama-3.1-8b", 2) == cache("llama-3.1-8b", 1) / 2);
  CHECK(cache("llama-3.1-8b", 8) == cache("llama-3.1-8b", 1) / 8);
  CHECK(cache("llama-3.1-8b", 16) == cache("llama-3.1-8b", 8));
  CHECK(cache("deepseek-v3", 8) == cache("deepseek-v3", 1));
}

TEST_CASE("tensor parallelism splits weights, repeats norms and surplus kv projections", "[unit]") {
  const auto weights = [](int tp) { return on("llama-3.1-8b", "h200", "full", tp).memory(Tokens(16), Tokens(16), 1).weights_bytes; };
  const double norms = (32.0 * 2 + 1) * 4096 * 2;
  CHECK(weights(8) == (weights(1) - norms) / 8 + norms);
  // At 16 ranks k and v are 128 columns wide as at 8: 32 layers x 2 x 128 x 4096 values stay.
  const double kv = 32.0 * 2 * 1024 * 4096 * 2;
  CHECK(weights(16) == (weights(1) - norms - kv) / 16 + kv / 8 + norms);
}

TEST_CASE("a weight format narrows layers, keeps the head, and never widens what is published narrower", "[unit]") {
  const auto weights = [](const char* model, WeightFormat f) {
    return Evaluator({.model = &models::find_model(model), .gpu = find_gpu("b200"), .weights = f}).memory(Tokens(16), Tokens(16), 1).weights_bytes;
  };
  const double head = 2.0 * 128256 * 4096 * 2, norms = (32.0 * 2 + 1) * 4096 * 2;
  CHECK(weights("llama-3.1-8b", WeightFormat::fp8) == (weights("llama-3.1-8b", WeightFormat::bf16) - head - norms) / 2 + head + norms);
  CHECK(weights("gpt-oss-20b", WeightFormat::bf16) < 15e9);   // experts are published in 4.25 bits
  CHECK(weights("deepseek-v3", WeightFormat::bf16) < 700e9);  // and these in 8
  CHECK(weights("llama-3.1-8b", WeightFormat::f32) == 2 * weights("llama-3.1-8b", WeightFormat::bf16) - norms);
}

TEST_CASE("a prompt longer than the context, empty or negative sizes are refused", "[unit]") {
  const Evaluator e = on("llama-3.1-8b", "h100");
  CHECK_THROWS_WITH(e.memory(Tokens(10), Tokens(5), 1), "prompt is 10, must be from 1 to context (5)");
  CHECK_THROWS_WITH(e.memory(Tokens(0), Tokens(5), 1), "prompt is 0, must be from 1 to context (5)");
  CHECK_THROWS_WITH(e.step(Tokens(0), 1), "context is 0, must be from 1 to 1073741824 tokens");
  CHECK_THROWS_WITH(e.step(Tokens(1), 0), "batch is 0, must be from 1 to 1048576");
}

#include "models/model.hpp"

#include "models/registry.hpp"
#include "tests/catch.hpp"
#include "tests/unit/models/config_support.hpp"

namespace kvatlas::models {
namespace {

using testing::changed;
using testing::import;
using testing::small_llama;

TEST_CASE("a small model's weights add up as by hand", "[unit]") {
  // layer: q 64*64, k and v 16*64 each, o 64*64, gate, up, down 96*64 each, two norms of 64
  const std::int64_t layer = 64 * 64 + 2 * 16 * 64 + 64 * 64 + 3 * 96 * 64 + 2 * 64;
  const Model m = import(small_llama());
  REQUIRE(layers(m) == 4);
  REQUIRE(m.groups.size() == 1);
  REQUIRE(parameters(m) == 4 * layer + 2 * 100 * 64 + 64);
  REQUIRE(active_parameters(m) == parameters(m));
  REQUIRE(parameters(import(changed(small_llama(), {{"tie_word_embeddings", true}}))) == 4 * layer + 100 * 64 + 64);
  REQUIRE(kv_bytes_per_token(m) == Bytes(4 * 2 * (8 + 8) * 2));
  REQUIRE(fixed_cache_bytes(m) == Bytes(0));
}

TEST_CASE("experts count whole in the model and in part for a token", "[unit]") {
  const Model m =
      import(changed(small_llama(), {{"model_type", "mixtral"}, {"num_local_experts", 8}, {"num_experts_per_tok", 2}}));
  const std::int64_t expert = 3 * 96 * 64;
  REQUIRE(parameters(m) - active_parameters(m) == 4 * 6 * expert);
  REQUIRE(m.groups[0].experts == 8);
  REQUIRE(m.groups[0].active_experts == 2);
  REQUIRE(m.groups[0].expert_width == 96);
  REQUIRE(m.groups[0].ffn_width == 0);
}

TEST_CASE("weight bytes follow the bits of each role", "[unit]") {
  const Model m = import(small_llama());
  WeightBits bits;
  REQUIRE(weight_bytes(m, bits) == Bytes(2 * parameters(m)));
  bits[Role::ffn] = 4.25;
  const std::int64_t ffn = 4 * 3 * 96 * 64;
  REQUIRE(weight_bytes(m, bits) == Bytes(2 * (parameters(m) - ffn) + ffn * 17 / 32));
}

TEST_CASE("cached bytes agree with the dense bytes of the cache's shape", "[unit]") {
  for (const Model& m : all_models()) {
    CAPTURE(m.slug);
    const Tokens far{1 << 20};  // every window is full
    REQUIRE(dense_bytes(m.cache, far) == Bytes(far.value * kv_bytes_per_token(m).value) + fixed_cache_bytes(m));
    REQUIRE(dense_bytes(m.cache, far + Tokens(1)) - dense_bytes(m.cache, far) == kv_bytes_per_token(m));
  }
}

TEST_CASE("the fp8 latent layout needs latent rows", "[unit]") {
  REQUIRE(kv_bytes_per_token_fp8_latent(find_model("deepseek-v3")) == Bytes(61 * 656));
  REQUIRE_FALSE(has_latent_rows(find_model("llama-2-7b")));
  try {
    kv_bytes_per_token_fp8_latent(find_model("llama-2-7b"));
    FAIL("llama-2-7b has no latent rows");
  } catch (const Unsupported& e) {
    REQUIRE(std::string(e.what()) == "model is llama-2-7b, must keep latent rows (MLA) for the fp8 latent layout");
  }
}

}  // namespace
}  // namespace kvatlas::models

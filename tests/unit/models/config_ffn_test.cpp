#include "tests/catch.hpp"
#include "tests/unit/models/config_support.hpp"

namespace kvatlas::models {
namespace {

using nlohmann::json;
using testing::changed;
using testing::import;
using testing::refusal;
using testing::small_llama;

json sparse(const json& patch) {
  return changed(changed(small_llama(), {{"model_type", "deepseek_v3"},
                                         {"n_routed_experts", 4},
                                         {"num_experts_per_tok", 2},
                                         {"moe_intermediate_size", 32}}),
                 patch);
}

std::vector<int> expert_layers(const json& config) {
  for (const LayerGroup& g : import(config).groups)
    if (g.experts > 0) return g.layers;
  return {};
}

TEST_CASE("experts sit in the layers that the config says", "[unit]") {
  using L = std::vector<int>;
  CHECK(expert_layers(sparse(json::object())) == L{0, 1, 2, 3});
  CHECK(expert_layers(sparse({{"first_k_dense_replace", 3}})) == L{3});
  CHECK(expert_layers(sparse({{"moe_layer_freq", 2}})) == L{0, 2});
  CHECK(expert_layers(sparse({{"decoder_sparse_step", 2}})) == L{1, 3});
  CHECK(expert_layers(sparse({{"mlp_only_layers", {0, 2}}})) == L{1, 3});
  CHECK(expert_layers(small_llama()).empty());
}

TEST_CASE("shared experts, router corrections and gates are counted", "[unit]") {
  const auto count = [](const json& patch) { return parameters(import(sparse(patch))); };
  const std::int64_t plain = count(json::object());
  CHECK(count({{"n_shared_experts", 2}}) - plain == 4 * 3 * 64 * 64);
  CHECK(count({{"topk_method", "noaux_tc"}}) - plain == 4 * 4);
  CHECK(count({{"shared_expert_intermediate_size", 16}}) - plain == 4 * (3 * 16 * 64 + 64));
  CHECK(count({{"n_routed_experts", 5}}) - plain == 4 * (3 * 32 * 64 + 64));
  const Model oss = import(changed(
      small_llama(),
      {{"model_type", "gpt_oss"}, {"num_local_experts", 4}, {"num_experts_per_tok", 2}, {"sliding_window", 16}}));
  // router 4 biases, experts 4 * (96 + 96 + 64), sinks 8 a layer
  const Model mixtral =
      import(changed(small_llama(), {{"model_type", "mixtral"}, {"num_local_experts", 4}, {"num_experts_per_tok", 2}}));
  CHECK(parameters(oss) - parameters(mixtral) == 4 * (4 + 4 * 256 + 8));
}

TEST_CASE("experts that cannot be are refused", "[unit]") {
  CHECK(refusal(sparse({{"num_experts_per_tok", 5}})) ==
        "num_experts_per_tok is 5, must be at most the number of experts (4)");
  CHECK(refusal(sparse({{"num_experts_per_tok", nullptr}})) ==
        "num_experts_per_tok is missing, must be an integer from 1 to 16384");
  CHECK(refusal(sparse({{"moe_intermediate_size", nullptr}, {"intermediate_size", nullptr}})) ==
        "moe_intermediate_size is missing, must be an integer from 1 to 262144");
  CHECK(refusal(sparse({{"n_routed_experts", -1}})) == "n_routed_experts is -1, must be an integer from 0 to 16384");
  CHECK(refusal(sparse({{"mlp_only_layers", {4}}})) ==
        "mlp_only_layers is [4], must be an array of integers from 0 to 3");
  CHECK(refusal(sparse({{"moe_layer_freq", 0}})) == "moe_layer_freq is 0, must be an integer from 1 to 1024");
}

}  // namespace
}  // namespace kvatlas::models

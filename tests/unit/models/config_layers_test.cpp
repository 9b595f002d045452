#include "tests/catch.hpp"
#include "tests/unit/models/config_support.hpp"

namespace kvatlas::models {
namespace {

using nlohmann::json;
using testing::changed;
using testing::import;
using testing::refusal;
using testing::small_llama;

std::vector<int> windowed(const json& patch) {
  const Model m = import(changed(small_llama(), patch));
  for (const LayerClass& c : m.cache.classes)
    if (c.window.value > 0) return c.layers;
  return {};
}

TEST_CASE("windows follow the rule of their family", "[unit]") {
  using L = std::vector<int>;
  CHECK(windowed({{"model_type", "mistral"}, {"sliding_window", 16}}) == L{0, 1, 2, 3});
  CHECK(windowed({{"model_type", "mistral"}}).empty());
  CHECK(windowed({{"model_type", "qwen2"}, {"sliding_window", 16}}).empty());
  CHECK(windowed({{"model_type", "qwen2"}, {"sliding_window", 16}, {"use_sliding_window", false}}).empty());
  CHECK(
      windowed(
          {{"model_type", "qwen2"}, {"sliding_window", 16}, {"use_sliding_window", true}, {"max_window_layers", 3}}) ==
      L{3});
  CHECK(windowed({{"model_type", "gemma2"}, {"sliding_window", 16}}) == L{0, 2});
  CHECK(windowed({{"model_type", "gemma3_text"}, {"sliding_window", 16}, {"sliding_window_pattern", 3}}) == L{0, 1, 3});
  CHECK(windowed({{"model_type", "gemma3_text"}, {"sliding_window", 16}, {"_sliding_window_pattern", 4}}) ==
        L{0, 1, 2});
  CHECK(windowed({{"model_type", "gpt_oss"}, {"sliding_window", 16}}) == L{0, 2});
  CHECK(windowed({{"sliding_window", 16},
                  {"layer_types", {"full_attention", "sliding_attention", "full_attention", "full_attention"}}}) ==
        L{1});
}

TEST_CASE("a window that no trained context fills is no window", "[unit]") {
  CHECK(windowed({{"model_type", "phi3"}, {"sliding_window", 512}}).empty());  // the trained context is 512
  CHECK(windowed({{"model_type", "phi3"}, {"sliding_window", 511}}).size() == 4);
  const Model m = import(changed(small_llama(), {{"model_type", "phi3"}, {"sliding_window", 262144}}));
  CHECK(kv_bytes_per_token(m) == kv_bytes_per_token(import(small_llama())));
}

TEST_CASE("wrong layer types and windows are refused", "[unit]") {
  const auto with = [](const json& patch) { return refusal(changed(small_llama(), patch)); };
  CHECK(with({{"layer_types", {"full_attention"}}}) == "layer_types has 1 entries, must have num_hidden_layers (4)");
  CHECK(with({{"layer_types", {"full_attention", "full_attention", "full_attention", "odd"}}}) ==
        "layer_types holds \"odd\", must be one of full_attention, sliding_attention, linear_attention");
  CHECK(with({{"layer_types", {"full_attention", "full_attention", "full_attention", "sliding_attention"}}}) ==
        "sliding_window is missing, must be an integer from 1 to 268435456 where layers see a window");
  CHECK(with({{"layer_types", "full_attention"}}) == "layer_types is \"full_attention\", must be an array of strings");
  CHECK(with({{"sliding_window", 0}}) == "sliding_window is 0, must be an integer from 1 to 268435456");
  CHECK(with({{"sliding_window", -1}}) == "sliding_window is -1, must be an integer from 1 to 268435456");
  CHECK(with({{"model_type", "gemma2"}, {"sliding_window", 16}, {"sliding_window_pattern", 0}}) ==
        "sliding_window_pattern is 0, must be an integer from 1 to 1024");
}

json kimi(const json& lists) {
  json linear{{"num_heads", 2}, {"head_dim", 8}, {"short_conv_kernel_size", 4}};
  linear.update(lists);
  return changed(small_llama(), {{"model_type", "kimi_linear"},
                                 {"kv_lora_rank", 16},
                                 {"qk_nope_head_dim", 8},
                                 {"qk_rope_head_dim", 4},
                                 {"v_head_dim", 8},
                                 {"linear_attn_config", linear}});
}

TEST_CASE("linear layers keep a state of fp32 and the last taps, as by hand", "[unit]") {
  const Model m = import(kimi({{"kda_layers", {1, 2, 3}}, {"full_attn_layers", {4}}}));
  CHECK(m.warnings.empty());
  CHECK(m.cache.class_of(0).state == Bytes(2 * 8 * 8 * 4 + 3 * 16 * 3 * 2));
  CHECK(kv_bytes_per_token(m) == Bytes((16 + 4) * 2));
  CHECK(fixed_cache_bytes(m) == Bytes(3 * (512 + 288)));
  CHECK(m.cache.class_of(3).score_scale == 1.0 / std::sqrt(12.0));

  const json next = changed(small_llama(), {{"model_type", "qwen3_next"},
                                            {"full_attention_interval", 2},
                                            {"linear_num_key_heads", 2},
                                            {"linear_num_value_heads", 4},
                                            {"linear_key_head_dim", 8},
                                            {"linear_value_head_dim", 8},
                                            {"linear_conv_kernel_dim", 4}});
  const Model n = import(next);
  CHECK(n.cache.class_of(1).kind == RowKind::kv);
  CHECK(n.cache.class_of(0).state == Bytes(4 * 8 * 8 * 4 + (2 * 16 + 32) * 3 * 2));
  CHECK(refusal(changed(next, {{"linear_num_value_heads", 3}})) ==
        "linear_num_value_heads is 3, must be a multiple of linear_num_key_heads (2)");
  CHECK(refusal(changed(next, {{"linear_conv_kernel_dim", nullptr}})) ==
        "linear_conv_kernel_dim is missing, must be an integer from 1 to 64");
}

TEST_CASE("Kimi's lists must name each layer once", "[unit]") {
  CHECK(refusal(kimi({{"kda_layers", {1, 2, 3}}})) ==
        "linear_attn_config.full_attn_layers is missing, must be an array of layer numbers from 1");
  CHECK(refusal(kimi({{"kda_layers", {1, 2}}, {"full_attn_layers", {4}}})) ==
        "linear_attn_config names layer 3 0 times, must name each layer once in kda_layers or full_attn_layers");
  CHECK(refusal(kimi({{"kda_layers", {1, 2, 3}}, {"full_attn_layers", {3, 4}}})) ==
        "linear_attn_config names layer 3 2 times, must name each layer once in kda_layers or full_attn_layers");
  CHECK(refusal(kimi({{"kda_layers", {0, 1, 2}}, {"full_attn_layers", {4}}})) ==
        "linear_attn_config.kda_layers is [0,1,2], must be an array of integers from 1 to 4");
}

TEST_CASE("latent attention is refused where its widths are missing or odd", "[unit]") {
  const json mla = changed(small_llama(), {{"model_type", "deepseek_v3"},
                                           {"kv_lora_rank", 16},
                                           {"q_lora_rank", 24},
                                           {"qk_nope_head_dim", 8},
                                           {"qk_rope_head_dim", 4},
                                           {"v_head_dim", 8}});
  const Model m = import(mla);
  // q_a 24x64, its norm 24, q_b 8*12x24, kv_a 20x64, its norm 16, kv_b 8*16x16, o 64x64
  std::int64_t attention = 0;
  for (const MatMul& w : m.groups[0].matrices)
    if (w.role == Role::attention) attention += w.values();
  CHECK(attention == 24 * 64 + 96 * 24 + 20 * 64 + 128 * 16 + 64 * 64);
  CHECK(m.cache.class_of(0).rope.first_channel == 16);
  CHECK(m.cache.class_of(0).rope.rotary_dim == 4);
  CHECK(refusal(changed(mla, {{"v_head_dim", nullptr}})) ==
        "v_head_dim is missing, must be an integer from 1 to 16384");
  CHECK(refusal(changed(mla, {{"qk_rope_head_dim", 5}})) == "qk_rope_head_dim is 5, must be even");
  CHECK(refusal(changed(mla,
                        {{"index_n_heads", 4}, {"index_head_dim", 8}, {"index_topk", 16}, {"q_lora_rank", nullptr}})) ==
        "q_lora_rank is missing, must be given where index_n_heads is");
  CHECK(refusal(changed(mla, {{"index_n_heads", 4}, {"index_topk", 16}})) ==
        "index_head_dim is missing, must be an integer from 1 to 16384");
}

}  // namespace
}  // namespace kvatlas::models

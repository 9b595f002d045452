#include "models/hf_config.hpp"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "models/zoo.hpp"
#include "tests/catch.hpp"
#include "tests/unit/models/config_support.hpp"

namespace kvatlas::models {
namespace {

using nlohmann::json;
using testing::changed;
using testing::import;
using testing::refusal;
using testing::small_llama;
using testing::unsupported;

TEST_CASE("a wrong or missing field is refused in one sentence", "[unit]") {
  const auto with = [](const json& patch) { return refusal(changed(small_llama(), patch)); };
  CHECK(with({{"hidden_size", nullptr}}) == "hidden_size is missing, must be an integer from 1 to 262144");
  CHECK(with({{"hidden_size", 0}}) == "hidden_size is 0, must be an integer from 1 to 262144");
  CHECK(with({{"hidden_size", "64"}}) == "hidden_size is \"64\", must be an integer from 1 to 262144");
  CHECK(with({{"hidden_size", 64.5}}) == "hidden_size is 64.5, must be an integer from 1 to 262144");
  CHECK(with({{"hidden_size", 66}}) ==
        "hidden_size is 66, must be a multiple of num_attention_heads (8) where head_dim is absent");
  CHECK(with({{"num_hidden_layers", nullptr}}) == "num_hidden_layers is missing, must be an integer from 1 to 1024");
  CHECK(with({{"num_hidden_layers", -4}}) == "num_hidden_layers is -4, must be an integer from 1 to 1024");
  CHECK(with({{"num_attention_heads", nullptr}}) ==
        "num_attention_heads is missing, must be an integer from 1 to 4096");
  CHECK(with({{"num_key_value_heads", 3}}) ==
        "num_attention_heads is 8, must be a multiple of num_key_value_heads (3)");
  CHECK(with({{"num_key_value_heads", 0}}) == "num_key_value_heads is 0, must be an integer from 1 to 4096");
  CHECK(with({{"num_key_value_heads", true}}) == "num_key_value_heads is true, must be an integer from 1 to 4096");
  CHECK(with({{"vocab_size", nullptr}}) == "vocab_size is missing, must be an integer from 1 to 16777216");
  CHECK(with({{"vocab_size", 18446744073709551615ULL}}) ==
        "vocab_size is 18446744073709551615, must be an integer from 1 to 16777216");
  CHECK(with({{"intermediate_size", nullptr}}) == "intermediate_size is missing, must be an integer from 1 to 262144");
  CHECK(with({{"head_dim", 0}}) == "head_dim is 0, must be an integer from 1 to 16384");
  CHECK(with({{"head_dim", 7}}) == "partial_rotary_factor is 1, must leave an even number of channels of head_dim (7)");
  CHECK(with({{"num_attention_heads", 4096}, {"head_dim", 512}}) ==
        "num_attention_heads is 4096 with 512 channels each, must together be at most 1048576");
  CHECK(with({{"max_position_embeddings", 0}}) ==
        "max_position_embeddings is 0, must be an integer from 1 to 268435456");
  CHECK(with({{"torch_dtype", "int3"}}) == "torch_dtype is \"int3\", must be one of bfloat16, float16, float32");
  CHECK(with({{"torch_dtype", 16}}) == "torch_dtype is 16, must be a string");
  CHECK(with({{"tie_word_embeddings", "yes"}}) == "tie_word_embeddings is \"yes\", must be true or false");
  CHECK(with({{"rope_theta", "big"}}) == "rope_theta is \"big\", must be a number from 1 to 1000000000000");
  CHECK(with({{"model_type", 7}}) == "model_type is 7, must be a string");
  CHECK(with({{"text_config", 3}}) == "text_config is not an object, must be a JSON object");
  CHECK(with({{"num_kv_shared_layers", 4}}) == "num_kv_shared_layers is 4, must be an integer from 0 to 3");
  CHECK(with({{"no_rope_layers", {1, 0}}}) == "no_rope_layers has 2 entries, must have num_hidden_layers (4)");
}

TEST_CASE("text that holds no config is refused in one sentence", "[unit]") {
  const auto said = [](std::string_view text) -> std::string {
    try {
      import_config(text, "c.json");
    } catch (const InvalidArgument& e) {
      return e.what();
    }
    return "accepted";
  };
  CHECK(said("") == "c.json is not JSON: the text stops making sense at byte 1");
  CHECK(said("{\"hidden_size\": 1e3087}") == "c.json holds a number beyond the range of doubles");
  CHECK(said("{\"hidden_size\": }") == "c.json is not JSON: the text stops making sense at byte 17");
  CHECK(said("[1, 2]") == "c.json holds array, must hold a JSON object");
  CHECK(said(std::string(5000, '[')) == "c.json nests its values deeper than 32 levels");
  CHECK(said("{}") == "hidden_size is missing, must be an integer from 1 to 262144");
}

TEST_CASE("every truncation of a valid config is refused", "[unit]") {
  const std::string whole = small_llama().dump();
  for (std::size_t n = 0; n < whole.size(); ++n)
    REQUIRE_THROWS_AS(import_config(std::string_view(whole).substr(0, n), "c.json"), InvalidArgument);
}

TEST_CASE("any odd value in any field is imported or refused, and counts stay counts", "[unit]") {
  const json odd[] = {-1,
                      0,
                      1,
                      3,
                      1e300,
                      4294967297,
                      9223372036854775807,
                      18446744073709551615ULL,
                      "",
                      "x",
                      true,
                      false,
                      0.5,
                      json::array(),
                      json::object(),
                      json::array({0}),
                      json::array({"x", nullptr}),
                      {{"factor", 1}}};
  int accepted = 0, refused = 0;
  for (const ZooFile& file : zoo_files()) {
    const json config = json::parse(file.text);
    for (const auto& [field, value] : config.items())
      for (const json& replacement : odd) {
        json broken = config;
        broken[field] = replacement;
        CAPTURE(file.name, field, replacement.dump());
        try {
          const Model m = import(broken);
          CHECK(parameters(m) > 0);
          CHECK(active_parameters(m) > 0);
          CHECK(kv_bytes_per_token(m) >= Bytes(0));
          CHECK(fixed_cache_bytes(m) >= Bytes(0));
          ++accepted;
        } catch (const Error&) {
          ++refused;
        }
      }
  }
  CHECK(accepted > 1000);
  CHECK(refused > 1000);
}

TEST_CASE("the largest model that is accepted does not overflow its counts", "[unit]") {
  const json largest{{"model_type", "mixtral"},     {"torch_dtype", "float32"},
                     {"hidden_size", 262144},       {"intermediate_size", 262144},
                     {"num_hidden_layers", 1024},   {"num_attention_heads", 4096},
                     {"num_key_value_heads", 4096}, {"head_dim", 256},
                     {"vocab_size", 16777216},      {"sliding_window", 268435456},
                     {"num_local_experts", 16384},  {"num_experts_per_tok", 16384}};
  const Model m = import(largest);
  const double values = 1024.0 * (16384.0 * 3.0 * 262144.0 * 262144.0);
  CHECK(static_cast<double>(parameters(m)) == Approx(values).epsilon(1e-3));
  CHECK(fixed_cache_bytes(m) == Bytes(std::int64_t{1024} * 268435456 * 2 * 4096 * 256 * 4));
}

TEST_CASE("a model of another architecture is refused, not approximated", "[unit]") {
  CHECK(unsupported(changed(small_llama(), {{"is_encoder_decoder", true}})) ==
        "is_encoder_decoder is true, must be false: only decoders are imported");
  CHECK(unsupported(changed(small_llama(), {{"model_type", "mamba2"}, {"state_size", 128}})) ==
        "model_type is \"mamba2\" with field state_size, must be a decoder of attention, latent or linear-attention "
        "layers");
}

TEST_CASE("unknown fields and assumptions are reported", "[unit]") {
  CHECK(import(small_llama()).warnings.empty());
  const auto with = [](const json& patch) { return import(changed(small_llama(), patch)).warnings; };
  using W = std::vector<std::string>;
  CHECK(with({{"zeta", 1}, {"alpha", {{"x", 1}}}}) ==
        W{"field alpha is not known; it was not used", "field zeta is not known; it was not used"});
  CHECK(with({{"rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}, {"odd", 1}}}}) ==
        W{"field rope_scaling.odd is not known; it was not used"});
  CHECK(with({{"kvatlas", {{"slug", "x"}, {"sulg", "y"}}}}) == W{"field kvatlas.sulg is not known; it was not used"});
  CHECK(with({{"torch_dtype", nullptr}}) == W{"field torch_dtype is absent; a cache in bf16 is assumed"});
  CHECK(with({{"num_key_value_heads", nullptr}}) ==
        W{"field num_key_value_heads is absent; one for each of 8 query heads is assumed"});
  CHECK(with({{"model_type", "newllm"}}) ==
        W{"model_type \"newllm\" is not known; imported as a decoder with gated FFN and two norms a layer"});
  CHECK(with({{"quantization_config", {{"quant_method", "exl9"}, {"bits", 3}}}}) ==
        W{"quantization_config.quant_method is \"exl9\", which is not known; weights are counted at 16 bits"});
  json null_field = small_llama();
  null_field["nobody_knows"] = nullptr;  // null says nothing
  CHECK(import(null_field).warnings.empty());
}

TEST_CASE("a gemma3 config is completed from its published defaults, and says so", "[unit]") {
  // what google/gemma-3-4b-pt publishes: the rest are defaults of the modelling code
  const json config{{"model_type", "gemma3"},
                    {"torch_dtype", "bfloat16"},
                    {"mm_tokens_per_image", 256},
                    {"text_config",
                     {{"hidden_size", 2560},
                      {"intermediate_size", 10240},
                      {"model_type", "gemma3_text"},
                      {"num_hidden_layers", 34},
                      {"rope_scaling", {{"factor", 8.0}, {"rope_type", "linear"}}},
                      {"sliding_window", 1024}}},
                    {"vision_config", {{"hidden_size", 1152}}}};
  const Model m = import(config);
  CHECK(parameters(m) == 3880263168);
  CHECK(kv_bytes_per_token(m) == Bytes(20480));
  CHECK(m.cache.class_of(5).rope.base == 1e6);
  CHECK(m.cache.class_of(0).rope.base == 1e4);
  const auto warned = [&](const char* sentence) {
    return std::find(m.warnings.begin(), m.warnings.end(), sentence) != m.warnings.end();
  };
  CHECK(m.warnings.size() == 9);
  CHECK(warned("field vision_config describes another tower; only the text decoder is imported"));
  CHECK(warned("field num_attention_heads is absent; 8 is assumed, the default of gemma3_text"));
}

TEST_CASE("layers that share rows own none and carry no key and value matrices", "[unit]") {
  const Model own = import(small_llama());
  const Model m = import(changed(small_llama(), {{"num_kv_shared_layers", 1}}));
  REQUIRE(m.cache.classes.size() == 1);
  CHECK(m.cache.classes[0].layers == std::vector<int>{0, 1, 2});
  CHECK(m.cache.classes[0].readers == std::vector<int>{3});
  CHECK(kv_bytes_per_token(m) == Bytes(kv_bytes_per_token(own).value * 3 / 4));
  CHECK(parameters(own) - parameters(m) == 2 * 16 * 64);
  CHECK(layers(m) == 4);
  CHECK(refusal(changed(
            small_llama(),
            {{"num_kv_shared_layers", 1},
             {"sliding_window", 16},
             {"layer_types", {"sliding_attention", "sliding_attention", "sliding_attention", "full_attention"}}})) ==
        "num_kv_shared_layers makes layer 3 read rows that no earlier layer of its kind keeps");
}

TEST_CASE("biases, norms and layers without positions are counted", "[unit]") {
  const std::int64_t plain = parameters(import(small_llama()));
  const auto extra = [&](const json& patch) { return parameters(import(changed(small_llama(), patch))) - plain; };
  CHECK(extra({{"attention_bias", true}}) == 4 * (64 + 16 + 16 + 64));
  CHECK(extra({{"model_type", "qwen2"}}) == 4 * (64 + 16 + 16));
  CHECK(extra({{"model_type", "qwen3"}}) == 4 * (8 + 8));
  CHECK(extra({{"attn_output_gate", true}}) == 4 * 64 * 64);
  CHECK(extra({{"mlp_bias", true}}) == 4 * (96 + 96 + 64));
  CHECK(extra({{"model_type", "gemma2"}, {"sliding_window", 16}, {"tie_word_embeddings", false}}) == 4 * 2 * 64);
  const Model m = import(changed(small_llama(), {{"no_rope_layers", {1, 1, 1, 0}}}));
  CHECK(m.cache.class_of(2).rope.rotary_dim == 8);
  CHECK(m.cache.class_of(3).rope.rotary_dim == 0);
}

TEST_CASE("an mpt config with grouped heads or a rare slope is not guessed at", "[unit]") {
  const json mpt{{"model_type", "mpt"}, {"torch_dtype", "bfloat16"}, {"d_model", 64},      {"n_heads", 8},
                 {"n_layers", 2},       {"vocab_size", 100},         {"max_seq_len", 128}, {"expansion_ratio", 4}};
  CHECK(import(mpt).cache.class_of(0).alibi);
  CHECK(parameters(import(changed(mpt, {{"no_bias", false}}))) - parameters(import(mpt)) ==
        2 * (3 * 64 + 64 + 256 + 64 + 2 * 64) + 64);
  CHECK(unsupported(changed(mpt, {{"attn_config", {{"kv_n_heads", 2}}}})) ==
        "attn_config names grouped heads or qk_ln, must describe multihead_attention without qk_ln");
  CHECK(import(changed(mpt, {{"attn_config", {{"alibi_bias_max", 16}}}})).warnings ==
        std::vector<std::string>{"attn_config.alibi_bias_max is 16; slopes for 8 are assumed"});
  CHECK_FALSE(import(changed(mpt, {{"attn_config", {{"alibi", false}}}})).cache.class_of(0).alibi);
}

TEST_CASE("published weight formats give the bits of each role", "[unit]") {
  const auto bits = [](const json& quantization) {
    return import(changed(small_llama(), {{"quantization_config", quantization}})).native_bits;
  };
  CHECK(import(small_llama()).native_bits == WeightBits{});
  CHECK(bits({{"quant_method", "mxfp4"}})[Role::expert] == 4.25);
  CHECK(bits({{"quant_method", "mxfp4"}})[Role::attention] == 16.0);
  CHECK(bits({{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}})[Role::ffn] == 8.0 + 32.0 / 16384.0);
  CHECK(bits({{"quant_method", "awq"}, {"bits", 4}, {"group_size", 128}})[Role::attention] == 4.0 + 20.0 / 128.0);
  CHECK(bits({{"quant_method", "gptq"}, {"bits", 4}, {"group_size", -1}})[Role::lm_head] == 16.0);
  CHECK(refusal(changed(small_llama(), {{"quantization_config", {{"quant_method", "awq"}}}})) ==
        "quantization_config.bits is missing, must be an integer from 2 to 8");
  CHECK(import(changed(small_llama(), {{"torch_dtype", "float32"}})).native_bits.vectors == 32.0);
}

TEST_CASE("a file is imported under its name, and its errors name it", "[unit]") {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "kvatlas_hf_config_test" / "tiny-llama";
  std::filesystem::create_directories(folder);
  const std::filesystem::path file = folder / "config.json";
  std::ofstream(file) << small_llama().dump();
  const Model m = import_config_file(file);
  CHECK(m.slug == "tiny-llama");
  CHECK(m.source == cat("config file ", file.string()));
  const auto said = [](const std::filesystem::path& path) -> std::string {
    try {
      import_config_file(path);
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  std::ofstream(file) << changed(small_llama(), {{"vocab_size", 0}}).dump();
  CHECK(said(file) == cat(file.string(), ": vocab_size is 0, must be an integer from 1 to 16777216"));
  std::ofstream(file) << "{";
  CHECK(said(file) == cat(file.string(), " is not JSON: the text stops making sense at byte 2"));
  CHECK(said(folder) == cat(folder.string(), " cannot be read, must be a config.json file"));
  CHECK_THROWS_AS(import_config_file(folder / "absent.json"), IoError);
  std::filesystem::remove_all(folder.parent_path());
}

}  // namespace
}  // namespace kvatlas::models

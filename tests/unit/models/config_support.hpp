// A small valid Llama config, and what a change to it leads to.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/errors.hpp"
#include "models/hf_config.hpp"

namespace kvatlas::models::testing {

inline nlohmann::json small_llama() {
  return {{"model_type", "llama"},    {"torch_dtype", "bfloat16"}, {"hidden_size", 64},
          {"intermediate_size", 96},  {"num_hidden_layers", 4},    {"num_attention_heads", 8},
          {"num_key_value_heads", 2}, {"vocab_size", 100},         {"max_position_embeddings", 512},
          {"rope_theta", 10000.0}};
}

inline nlohmann::json changed(nlohmann::json config, const nlohmann::json& patch) {
  config.merge_patch(patch);  // null removes a field
  return config;
}

inline Model import(const nlohmann::json& config) { return import_config(config.dump(), "test.json"); }

/// The sentence that refuses `config`; "accepted" when nothing does, "other error" for another class of error.
inline std::string refusal(const nlohmann::json& config) {
  try {
    import(config);
  } catch (const InvalidArgument& e) {
    return e.what();
  } catch (const Error& e) {
    return cat("other error: ", e.what());
  }
  return "accepted";
}

inline std::string unsupported(const nlohmann::json& config) {
  try {
    import(config);
  } catch (const Unsupported& e) {
    return e.what();
  }
  return "accepted";
}

}  // namespace kvatlas::models::testing

// What the published modelling code of each model type fixes; everything else comes from its config.
#include <algorithm>
#include <array>

#include "models/config_parts.hpp"

namespace kvatlas::models {

namespace {

constexpr std::array kFamilies{
    Family{.model_type = "llama"},
    Family{.model_type = "Yi"},
    Family{.model_type = "mistral"},
    Family{.model_type = "mixtral"},
    Family{.model_type = "phi3"},
    Family{.model_type = "qwen2", .qkv_bias = true, .window = WindowRule::opt_in},
    Family{.model_type = "qwen2_moe", .qkv_bias = true, .window = WindowRule::opt_in},
    Family{.model_type = "qwen3", .qk_norm = true, .window = WindowRule::opt_in},
    Family{.model_type = "qwen3_moe", .qk_norm = true, .window = WindowRule::opt_in},
    Family{.model_type = "qwen3_next", .qk_norm = true, .window = WindowRule::opt_in},
    Family{.model_type = "gemma", .tied = true},
    Family{.model_type = "gemma2", .norms = 4, .tied = true, .window = WindowRule::pattern, .window_pattern = 2},
    Family{.model_type = "gemma3",
           .norms = 4,
           .tied = true,
           .qk_norm = true,
           .window = WindowRule::pattern,
           .window_pattern = 6},
    Family{.model_type = "gemma3_text",
           .norms = 4,
           .tied = true,
           .qk_norm = true,
           .window = WindowRule::pattern,
           .window_pattern = 6},
    Family{.model_type = "gpt_oss",
           .expert_bias = true,
           .sinks = true,
           .window = WindowRule::pattern,
           .window_pattern = 2},
    Family{.model_type = "deepseek_v2", .layout = RopeLayout::interleaved},
    Family{.model_type = "deepseek_v3", .layout = RopeLayout::interleaved},
    Family{.model_type = "deepseek_v32", .layout = RopeLayout::interleaved},
    Family{.model_type = "kimi_k2", .layout = RopeLayout::interleaved},
    Family{.model_type = "kimi_linear", .layout = RopeLayout::interleaved},
    Family{.model_type = "gptj",
           .norms = 1,
           .layer_norm_bias = true,
           .gated = false,
           .ffn_bias = true,
           .head_bias = true,
           .layout = RopeLayout::interleaved},
    Family{.model_type = "mpt", .gated = false, .tied = true},
};

}  // namespace

const Family* find_family(std::string_view model_type) {
  const auto it =
      std::find_if(kFamilies.begin(), kFamilies.end(), [&](const Family& f) { return f.model_type == model_type; });
  return it == kFamilies.end() ? nullptr : it;
}

}  // namespace kvatlas::models

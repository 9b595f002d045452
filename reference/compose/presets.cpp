#include "reference/compose/recipe.hpp"

namespace kvatlas {

namespace {

// A preset is a deployment's own setting spelled as a recipe; it appears once its methods are in the registry.
constexpr Preset kPresets[] = {
    {"vllm:auto", "full", "vLLM engine arguments: --kv-cache-dtype auto"},
    {"vllm:fp8", "fp8_kv", "vLLM documentation, quantized KV cache: --kv-cache-dtype fp8 (e4m3, scale 1.0 per tensor)"},
    {"vllm:fp8_e5m2", "fp8_kv:format=e5m2", "vLLM documentation, quantized KV cache: --kv-cache-dtype fp8_e5m2"},
    {"sglang:fp8", "fp8_kv", "SGLang server arguments: --kv-cache-dtype fp8_e4m3"},
    {"sglang:fp8_e5m2", "fp8_kv:format=e5m2", "SGLang server arguments: --kv-cache-dtype fp8_e5m2"},
    {"trtllm:fp8", "fp8_kv", "TensorRT-LLM documentation, quantization: FP8 KV cache"},
};

}  // namespace

std::span<const Preset> presets() { return kPresets; }

}  // namespace kvatlas

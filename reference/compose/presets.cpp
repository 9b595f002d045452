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
    {"llama.cpp:q8_0", "llamacpp_kv", "llama.cpp server arguments: --cache-type-k q8_0 --cache-type-v q8_0"},
    {"llama.cpp:q5_1", "llamacpp_kv:k_type=q5_1,v_type=q5_1", "llama.cpp server arguments: --cache-type-k q5_1 --cache-type-v q5_1"},
    {"llama.cpp:q5_0", "llamacpp_kv:k_type=q5_0,v_type=q5_0", "llama.cpp server arguments: --cache-type-k q5_0 --cache-type-v q5_0"},
    {"llama.cpp:q4_1", "llamacpp_kv:k_type=q4_1,v_type=q4_1", "llama.cpp server arguments: --cache-type-k q4_1 --cache-type-v q4_1"},
    {"llama.cpp:q4_0", "llamacpp_kv:k_type=q4_0,v_type=q4_0", "llama.cpp server arguments: --cache-type-k q4_0 --cache-type-v q4_0"},
    {"llama.cpp:iq4_nl", "llamacpp_kv:k_type=iq4_nl,v_type=iq4_nl", "llama.cpp server arguments: --cache-type-k iq4_nl --cache-type-v iq4_nl"},
    {"llama.cpp:q8_0/q4_0", "llamacpp_kv:v_type=q4_0", "llama.cpp server arguments: --cache-type-k q8_0 --cache-type-v q4_0"},
    {"llama.cpp:q8_0/unrotated", "llamacpp_kv:rotation=false", "llama.cpp before April 2026, or LLAMA_ATTN_ROT_DISABLE=1: --cache-type-k q8_0 --cache-type-v q8_0"},
    {"trtllm:nvfp4", "nvfp4_kv", "TensorRT-LLM documentation, quantization: kv_cache_config.dtype nvfp4"},
    {"omniserve:kv4", "qserve_kv4", "mit-han-lab/omniserve README: KV4 with zero points"},
    {"vllm:turboquant_k8v4", "layers=0-1,last2:full;*:turboquant:variant=vllm,k_bits=8,v_bits=4",
     "vLLM pull request 38479: --kv-cache-dtype turboquant_k8v4; the engine leaves the first and the last two layers plain"},
    {"vllm:turboquant_4bit_nc", "layers=0-1,last2:full;*:turboquant:variant=vllm,k_bits=4,v_bits=4,norm_correction=true",
     "vLLM pull request 38479: --kv-cache-dtype turboquant_4bit_nc; the engine leaves the first and the last two layers plain"},
    {"vllm:turboquant_k3v4_nc", "layers=0-1,last2:full;*:turboquant:variant=vllm,k_bits=3,v_bits=4,norm_correction=true",
     "vLLM pull request 38479: --kv-cache-dtype turboquant_k3v4_nc; the engine leaves the first and the last two layers plain"},
    {"vllm:turboquant_3bit_nc", "layers=0-1,last2:full;*:turboquant:variant=vllm,k_bits=3,v_bits=3,norm_correction=true",
     "vLLM pull request 38479: --kv-cache-dtype turboquant_3bit_nc; the engine leaves the first and the last two layers plain"},
    {"vllm:int8_per_token_head", "int8_pth:rounding=truncate", "vLLM, dynamic INT8 scales; per token and head by a test file and third-party descriptions, no engine argument is known"},
    {"vllm:fp8_per_token_head", "fp8_pth", "vLLM, dynamic FP8 scales; per token and head by a test file and third-party descriptions, no engine argument is known"},
};

}  // namespace

std::span<const Preset> presets() { return kPresets; }

}  // namespace kvatlas

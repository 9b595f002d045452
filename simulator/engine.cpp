#include "simulator/engine.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include "core/errors.hpp"

namespace kvatlas::sim {

namespace {

using namespace literals;

struct FormatRow {
  WeightFormat format;
  const char* name;
  double bits;
};
constexpr std::array<FormatRow, 9> kFormats{{
    {WeightFormat::f32, "f32", 32},
    {WeightFormat::bf16, "bf16", 16},
    {WeightFormat::fp8, "fp8", 8},          // one float32 scale for each tensor or 128x128 block: below 0.01 bit
    {WeightFormat::int8, "int8", 8},        // one scale for each output channel
    {WeightFormat::int8_wo, "int8_wo", 8},
    {WeightFormat::int4_wo, "int4_wo", 4.15625},  // groups of 128: fp16 scale and 4-bit zero point
    {WeightFormat::fp4, "fp4", 4.5},        // nvfp4: one e4m3 scale for each 16 weights
    {WeightFormat::batquant, "batquant", 4.25},  // arXiv 2603.16590: MXFP4 weights and activations, one E8M0 scale for each 32
    {WeightFormat::ptq161, "ptq161", 1.61},  // zjq0455/PTQ1.61: weights alone, a fifth of the input channels at 4 bits, the rest at 1
}};

// A step's host work: published fits of vLLM steps on H100 find 126 us a step and 4 us a running request; with
// asynchronous scheduling most of it hides behind the GPU, so profiles keep the part that does not.
constexpr std::array<Engine, 5> kEngines{{
    {"vllm", "vLLM", true, Seconds(126e-6), Seconds(4e-6), Seconds(0.0), Bytes(800000000), 16_tok, Seconds(5e-6),
     "published fit of vLLM steps on H100: 126 us a step, 4 us a request; workspace (context and graphs) assumed"},
    {"sglang", "SGLang", true, Seconds(100e-6), Seconds(2e-6), Seconds(0.0), Bytes(1000000000), 1_tok, Seconds(5e-6),
     "assumed: as vLLM with an overlapped scheduler; pages of one token are its default"},
    {"trtllm", "TensorRT-LLM", true, Seconds(60e-6), Seconds(1e-6), Seconds(0.0), Bytes(1000000000), 32_tok, Seconds(5e-6),
     "assumed: compiled scheduler; pages of 32 tokens are its default"},
    {"llama.cpp", "llama.cpp", true, Seconds(60e-6), Seconds(10e-6), Seconds(0.0), Bytes(500000000), 1_tok, Seconds(5e-6),
     "assumed: compiled, one process, contiguous cache"},
    {"transformers", "Hugging Face Transformers", false, Seconds(500e-6), Seconds(0.0), Seconds(50e-6), Bytes(600000000), 1_tok,
     Seconds(10e-6), "assumed: eager framework, 10 to 40 us a launch"},
}};

}  // namespace

const char* name_of(WeightFormat format) {
  for (const FormatRow& r : kFormats)
    if (r.format == format) return r.name;
  return "?";
}

double bits_per_weight(WeightFormat format) {
  for (const FormatRow& r : kFormats)
    if (r.format == format) return r.bits;
  return 16;
}

std::vector<std::string_view> weight_format_names() {
  std::vector<std::string_view> names;
  for (const FormatRow& r : kFormats) names.emplace_back(r.name);
  return names;
}

WeightFormat parse_weight_format(std::string_view text) {
  for (const FormatRow& r : kFormats)
    if (text == r.name) return r.format;
  throw InvalidArgument(unknown_name("weight format", text, weight_format_names()));
}

std::span<const Engine> all_engines() { return kEngines; }

const Engine& find_engine(std::string_view slug) {
  std::vector<std::string_view> names;
  for (const Engine& e : kEngines) {
    if (slug == e.slug) return e;
    names.emplace_back(e.slug);
  }
  throw InvalidArgument(unknown_name("engine", slug, names));
}

const Engine& default_engine() { return kEngines.front(); }

}  // namespace kvatlas::sim

// Serving engines as profiles (overheads that are the engine's, not the GPU's) and weight formats.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/units.hpp"

namespace kvatlas::sim {

enum class WeightFormat : std::uint8_t { f32, bf16, fp8, int8, int8_wo, int4_wo, fp4, batquant, ptq161 };
const char* name_of(WeightFormat format);
double bits_per_weight(WeightFormat format);  // scales included
/// throws InvalidArgument with a suggestion
WeightFormat parse_weight_format(std::string_view text);
std::vector<std::string_view> weight_format_names();

struct Engine {
  const char* slug;
  const char* name;
  bool cuda_graphs;            // decode steps are replayed from graphs
  Seconds step_overhead;       // host work of one step
  Seconds per_request;         // host work per running request and step
  Seconds per_layer;           // extra per layer
  Bytes workspace;             // activations, graphs and context beside weights and cache
  Tokens page;                 // tokens of one cache page
  Seconds eager_launch;        // host time of one kernel launch without graphs
  const char* source;
};

std::span<const Engine> all_engines();
const Engine& find_engine(std::string_view slug);  // throws InvalidArgument with a suggestion
const Engine& default_engine();

}  // namespace kvatlas::sim

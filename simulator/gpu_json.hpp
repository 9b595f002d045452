// The JSON record of a GPU: every figure with unit, source and provenance.
#pragma once

#include <nlohmann/json.hpp>

#include "simulator/gpu.hpp"

namespace kvatlas::sim {

/// Unknown figures are null. Provenance is `assumed` or `measured` where the source says so, else `published`.
nlohmann::json to_json(const Gpu& gpu);

/// throws InvalidArgument for a record that misses a field, names an unknown figure, unit or has a figure without source.
Gpu gpu_from_json(const nlohmann::json& record);

}  // namespace kvatlas::sim

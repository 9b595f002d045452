// The records of simulator/gpus/, embedded by CMake (simulator/gpus.cmake).
#pragma once

#include <span>
#include <string_view>

namespace kvatlas::sim {

struct GpuFile {
  std::string_view name;  // as in simulator/gpus/
  std::string_view text;
};

/// Every embedded record, ordered by file name.
std::span<const GpuFile> gpu_files();

}  // namespace kvatlas::sim

// What a GPU architecture lets a kernel launch, and the sizes that the executor's counters need.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace kvatlas::gpu {

struct GpuLimits {
  std::string_view name;               // "sm_90a", as nvcc spells it
  std::int64_t shared_default;         // bytes of shared memory a block may have without opting in
  std::int64_t shared_opt_in;          // bytes it may have at most
  int max_threads = 1024;              // of a block
  std::int64_t max_grid_x = 2147483647;
  std::int64_t max_grid_yz = 65535;
  int registers = 65536;               // of a multiprocessor
  int max_warps;                       // of a multiprocessor
  std::int64_t shared_of_sm;           // bytes of a multiprocessor
};

/// CUDA C++ Programming Guide, "Compute Capabilities", technical specifications per compute capability.
std::span<const GpuLimits> all_gpu_limits();
/// throws InvalidArgument for an unknown name
const GpuLimits& gpu_limits(std::string_view name);

}  // namespace kvatlas::gpu

#include "gpu/simt/limits.hpp"

#include <array>
#include <vector>

#include "core/errors.hpp"

namespace kvatlas::gpu {

namespace {
// CUDA C++ Programming Guide 13, tables of compute capabilities: a block gets at most the multiprocessor's memory less 1 KiB.
constexpr std::array<GpuLimits, 6> kLimits{{
    {.name = "sm_80", .shared_default = 48 << 10, .shared_opt_in = 163 << 10, .max_warps = 64, .shared_of_sm = 164 << 10},
    {.name = "sm_86", .shared_default = 48 << 10, .shared_opt_in = 99 << 10, .max_warps = 48, .shared_of_sm = 100 << 10},
    {.name = "sm_89", .shared_default = 48 << 10, .shared_opt_in = 99 << 10, .max_warps = 48, .shared_of_sm = 100 << 10},
    {.name = "sm_90a", .shared_default = 48 << 10, .shared_opt_in = 227 << 10, .max_warps = 64, .shared_of_sm = 228 << 10},
    {.name = "sm_100", .shared_default = 48 << 10, .shared_opt_in = 227 << 10, .max_warps = 64, .shared_of_sm = 228 << 10},
    {.name = "sm_120", .shared_default = 48 << 10, .shared_opt_in = 99 << 10, .max_warps = 48, .shared_of_sm = 100 << 10},
}};
}  // namespace

std::span<const GpuLimits> all_gpu_limits() { return kLimits; }

const GpuLimits& gpu_limits(std::string_view name) {
  std::vector<std::string_view> names;
  for (const GpuLimits& l : kLimits) {
    if (l.name == name) return l;
    names.push_back(l.name);
  }
  throw InvalidArgument(unknown_name("GPU architecture", name, names));
}

}  // namespace kvatlas::gpu

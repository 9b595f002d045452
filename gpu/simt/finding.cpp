#include "gpu/simt/finding.hpp"

#include <array>
#include <string_view>

#include "core/errors.hpp"

namespace kvatlas::gpu {

const char* name_of(FindingKind kind) {
  static constexpr std::array<const char*, 19> kNames{
      "out_of_bounds", "misaligned", "read_only", "uninitialised_read", "race", "same_value_write", "divergent_barrier",
      "exited_at_barrier", "dead_lock", "mismatched_collective", "bad_mask", "exited_lane", "bad_source", "missing_wait",
      "non_uniform_site", "launch_limit", "stack_overflow", "trap", "exception"};
  return kNames[static_cast<std::size_t>(kind)];
}

bool stops_launch(FindingKind kind) {
  switch (kind) {
    case FindingKind::uninitialised_read:
    case FindingKind::race:
    case FindingKind::same_value_write:
    case FindingKind::missing_wait:
    case FindingKind::non_uniform_site: return false;
    default: return true;
  }
}

std::string to_string(const Site& site) {
  std::string_view file = site.file;
  if (const auto slash = file.rfind('/'); slash != std::string_view::npos) file.remove_prefix(slash + 1);
  return cat(file, ":", site.line);
}

}  // namespace kvatlas::gpu

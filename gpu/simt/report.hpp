// The executor's counts and findings as a table for people and JSON for programs.
#pragma once

#include <string>

#include "gpu/simt/executor.hpp"

namespace kvatlas::gpu {

/// One line a site, one for each sum; findings below.
std::string table_of(const LaunchReport& report);
/// {completed, findings:[{kind, site, other, text}], sites:[{site, op, width, requests, ...}], reads, writes, atomics, shared, l2}
std::string json_of(const LaunchReport& report);

}  // namespace kvatlas::gpu

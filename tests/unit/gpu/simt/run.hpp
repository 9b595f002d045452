// Small helpers of the executor's tests: one launch, all schedules, findings by kind.
#pragma once

#include <vector>

#include "gpu/simt/sim_context.hpp"
#include "tests/catch.hpp"

namespace kvatlas::gpu {

template <class Kernel>
LaunchReport run(const Launch& launch, Kernel&& kernel, const Schedule& schedule = {}) {
  Executor executor;
  return simulate(executor, launch, schedule, kernel);
}

/// The kinds that were found, in the order of the report.
inline std::vector<FindingKind> kinds(const LaunchReport& report) {
  std::vector<FindingKind> out;
  for (const Finding& f : report.findings) out.push_back(f.kind);
  return out;
}

inline const std::vector<FindingKind> kNothing{};

}  // namespace kvatlas::gpu

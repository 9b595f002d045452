// Where one deployment overtakes another: the context, the batch and the memory bandwidth at which the order changes.
#pragma once

#include <optional>
#include <string>

#include "core/units.hpp"
#include "simulator/evaluator.hpp"

namespace kvatlas::sim {

struct BreakevenQuestion {
  Deployment deployment;                     // its recipe is the method that is to pay
  Recipe against = Recipe::parse("full");
  Tokens context{32768};                     // where batch and bandwidth are searched, and where the reason is told
  int batch = 1;                             // where context and bandwidth are searched
  Tokens longest{1 << 20};
  int largest = 1024;
  /// With it whole workloads are compared by requests/s: prompts of `context`, so many output tokens, `batch` in flight. Without
  /// it one decode step.
  std::optional<Tokens> output{};
};

/// Absent figures: no border within the searched range; the sentence beside says on which side all of it lies.
struct Breakeven {
  std::optional<std::int64_t> context, batch;  // from here on the method stays ahead
  std::optional<double> bandwidth;             // bytes/s at which both are equal
  std::optional<bool> wins_below;              // the side of that bandwidth on which the method is ahead; absent with it
  double gain = 0;                             // at the asked context and batch: other time over own (step), own rate over the other's (workload)
  std::string context_why, batch_why, bandwidth_why, reason;
  Evidence evidence = Evidence::extrapolated;
};

/// throws as Evaluator's constructor does for either recipe; InvalidArgument for a range that cannot be
Breakeven breakeven(const BreakevenQuestion& question);

}  // namespace kvatlas::sim

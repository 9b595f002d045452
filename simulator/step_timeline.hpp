// One decode step, or one prompt, as a Chrome/Perfetto timeline: every kernel of every layer in the order in which it runs.
#pragma once

#include <string>
#include <vector>

#include "simulator/evaluator.hpp"

namespace kvatlas::sim {

/// One launch, or a part of a launch below it: what it would take if it alone limited the kernel.
struct TimelineEvent {
  std::string name;
  int layer = -1;          // -1: outside the layers
  double start_s = 0, seconds = 0;
  Bound bound = Bound::latency;
  double bytes = 0, flops = 0;
  struct Term {
    const char* name;      // "load", "unpack", "tensor", "vector", "start", "link"
    double seconds;
  };
  std::vector<Term> terms; // of attention and method kernels
};

/// Launches of all layers one after another; their times add up to the step's.
std::vector<TimelineEvent> step_timeline(const Evaluator& evaluator, Tokens prompt, Tokens context, int batch);

/// The events as Chrome/Perfetto JSON: kernels on one track, the limits of each kernel on tracks below it.
std::string timeline_json(const std::vector<TimelineEvent>& events, const std::string& title);

}  // namespace kvatlas::sim

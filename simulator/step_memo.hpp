// What steps of one deployment share, kept between calls of one thread: figures are the same bits with and without it.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "simulator/step_model.hpp"

namespace kvatlas::sim {

/// Belongs to one evaluator and one thread. A sweep asks every batch at every context: matrices, norms, logits and the engine's own
/// time depend on the batch alone, what a prompt holds before it is compressed on the prompt alone.
struct StepMemo {
  struct Pass {
    double tokens = -1;  // rows through the matrices
    Totals totals;
  };
  std::unordered_map<int, Pass> passes;  // by sequences of a micro-batch
  Tokens prompt{-1};
  double prompt_extra = 0;
};

}  // namespace kvatlas::sim

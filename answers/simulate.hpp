// One deployment simulated: a workload, or with the microscope one decode step; every figure under its key of the contract.
#pragma once

#include <optional>
#include <string>

#include "answers/record.hpp"
#include "simulator/evaluator.hpp"

namespace kvatlas::answers {

/// What both kinds of question are answered with.
struct Simulation {
  Json json;                    // the figures of this kind of question
  sim::StepExplained step;      // of a workload: in the middle of the output, at the concurrency that was found
  sim::Memory memory;
  int batch = 1;                // of that step
  std::optional<double> speedup, speedup_decode_only;
  std::string why_not;          // empty when the deployment can be
};

/// One decode step, prefill excluded.
Simulation microscope(const sim::Evaluator& evaluator, Tokens context, int batch);

/// Requests/s, TTFT and TPOT of a workload, prefill included.
Simulation workload(const sim::Evaluator& evaluator, const sim::Workload& workload);

/// The whole document: the question's names, memory, breakdown, and the figures.
Json document(const Simulation& simulation, const sim::Deployment& deployment);

/// The same deployment without compression: what speed-ups are speed-ups over.
sim::Evaluator baseline_of(sim::Deployment deployment);

}  // namespace kvatlas::answers

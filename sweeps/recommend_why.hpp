// The sentences of recommend: what binds, what a method gains, why it is not advised.
#pragma once

#include <optional>
#include <string>

#include "simulator/evaluator.hpp"
#include "sweeps/recommend.hpp"

namespace kvatlas::sweep {

/// Share of a request's GPU time that its prefill takes, 0 to 1: prefill + output tokens x step / concurrency.
double prefill_share(const sim::WorkloadFigures& figures, const sim::Workload& workload);

/// What limits the requests/s of a deployment, with its figures; `plain`: of the cache that all are compared with.
std::string binding_sentence(const sim::WorkloadFigures& figures, const sim::Workload& workload, bool plain);

/// Why a recommended recipe is where it is.
std::string gain_sentence(const Recommendation& r, const std::optional<sim::WorkloadFigures>& plain, const sim::Workload& workload);

/// Why a recipe that fits and meets the SLO is no gain.
std::string no_gain_sentence(double speedup, const sim::WorkloadFigures& figures, const sim::WorkloadFigures& plain, const sim::Workload& workload);

}  // namespace kvatlas::sweep

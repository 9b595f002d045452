// What the serving simulator reports, under the keys of the contract.
#pragma once

#include "answers/record.hpp"
#include "simulator/serving/serving.hpp"

namespace kvatlas::answers {

/// GPUs of all replicas together.
int gpus_of(const sim::ServingSetup& setup);

/// Latencies in ms, rates, goodput, counts; figures of nothing completed are null.
Json to_json(const sim::ServingReport& report, const sim::ServingSetup& setup);

}  // namespace kvatlas::answers

// Groups of options that several commands share: deployments, workloads; and what they become.
#pragma once

#include <vector>

#include "cli/commands/support/options.hpp"
#include "models/model.hpp"
#include "simulator/evaluator.hpp"

namespace kvatlas::cli {

/// --model and --gpu, both required.
std::vector<Option> model_and_gpu_options();
/// --weights, --tp ... --engine: how the model is deployed.
std::vector<Option> deployment_options();
/// --prompt, --output, --rate or --concurrency, --slo.
std::vector<Option> workload_options();

/// The deployment but for its recipe. `model` must outlive the result.
/// throws UsageError, InvalidArgument; Unsupported for options that a later version brings
sim::Deployment read_deployment(const Parsed& p, const models::Model& model);

/// throws UsageError when --prompt or --output is missing, or both --rate and --concurrency are given
sim::Workload read_workload(const Parsed& p);

/// The limits of --slo. throws UsageError when one is given twice
sim::Slo read_slo(const Parsed& p);

/// "32,768 prompt + 512 output tokens, 8 requests in flight, TPOT <= 50 ms".
std::string spell(const sim::Workload& w);

}  // namespace kvatlas::cli

// The serving simulator's door: a deployment, a stream of requests, and the latencies and rates that come out. Deterministic.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "simulator/evaluator.hpp"
#include "simulator/serving/replica.hpp"
#include "simulator/serving/request.hpp"

namespace kvatlas::sim {

struct ServingSetup {
  Deployment deployment;              // dp replicas, each its own engine; chunk = tokens of one pass
  std::int64_t sequences = 256;       // of one replica, running at once
  bool disaggregated = false;         // prompts and decodes on replicas of their own
  int prefill_replicas = 1, decode_replicas = 1;  // then
  Slo slo{};
  std::int64_t skip = 0;              // requests (in order of arrival) that warm the engine up and are not reported
  std::size_t most_spans = 0;         // spans to keep for a timeline
};

/// Nearest-rank percentiles and the mean of one figure over the reported requests, seconds.
struct Percentiles {
  double p50 = 0, p90 = 0, p99 = 0, mean = 0, most = 0;
  std::int64_t count = 0;
};
Percentiles percentiles(std::vector<double> values);

struct ServingReport {
  std::int64_t requests = 0, completed = 0, refused = 0, reported = 0, preemptions = 0;
  std::string refused_why;            // sentence about the first one
  Percentiles ttft, tpot, e2e, queue; // tpot: of requests with more than one output token
  double duration_s = 0;              // first arrival to last token
  double requests_per_s = 0, tokens_per_s = 0;  // of completed requests over the duration
  double goodput_per_s = 0;           // completed requests that met the SLO; all of them without one
  double steady_requests_per_s = 0;   // rate between a quarter and three quarters of the completions
  double steady_goodput_per_s = 0;
  double good_share = 0;
  double prefix_hit_rate = 0;         // found prompt tokens over asked ones
  double gpu_hours = 0, busy_share = 0;
  std::int64_t kv_tokens = 0, pool_blocks = 0, most_blocks_used = 0;  // of one decoding replica
  ReplicaCounts counts;               // all replicas together
  bool blocks_returned = false;       // nothing is held at the end
  Evidence evidence = Evidence::extrapolated;
  std::vector<Progress> progress;     // one a request, in the stream's order
  std::vector<Span> spans;
};

/// throws as Evaluator's constructor does; InvalidArgument for a setup or stream that cannot be, also when no request fits
ServingReport serve(const ServingSetup& setup, const Stream& stream);

/// The run as Chrome/Perfetto JSON: spans of every replica, running and waiting requests, phases of single requests.
std::string serving_timeline(const ServingReport& report, const Stream& stream, std::size_t most_requests = 2000);

}  // namespace kvatlas::sim

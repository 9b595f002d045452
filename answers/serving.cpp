#include "answers/serving.hpp"

namespace kvatlas::answers {

namespace {

Json percentiles_record(const sim::Percentiles& p) {
  if (p.count == 0) return {{"p50", nullptr}, {"p90", nullptr}, {"p99", nullptr}, {"mean", nullptr}, {"max", nullptr}};
  return {{"p50", 1e3 * p.p50}, {"p90", 1e3 * p.p90}, {"p99", 1e3 * p.p99}, {"mean", 1e3 * p.mean}, {"max", 1e3 * p.most}};
}

}  // namespace

int gpus_of(const sim::ServingSetup& setup) {
  const int replicas = setup.disaggregated ? setup.prefill_replicas + setup.decode_replicas : setup.deployment.dp;
  return replicas * setup.deployment.tp * setup.deployment.pp;
}

Json to_json(const sim::ServingReport& r, const sim::ServingSetup& setup) {
  const bool some = r.completed > 0;
  const auto known = [&](double v) { return some ? Json(v) : Json(nullptr); };
  const auto limit = [](const std::optional<double>& s) { return s ? Json(1e3 * *s) : Json(nullptr); };
  return {{"requests", r.requests}, {"completed", r.completed}, {"refused", r.refused}, {"refused_why", r.refused > 0 ? Json(r.refused_why) : Json(nullptr)},
          {"ttft_ms", percentiles_record(r.ttft)}, {"tpot_ms", percentiles_record(r.tpot)}, {"e2e_ms", percentiles_record(r.e2e)}, {"queue_ms", percentiles_record(r.queue)},
          {"requests_per_s", known(r.requests_per_s)}, {"throughput_tok_s", known(r.tokens_per_s)}, {"goodput_req_s", known(r.goodput_per_s)},
          {"slo", {{"ttft_ms", limit(setup.slo.ttft_s)}, {"tpot_ms", limit(setup.slo.tpot_s)}, {"met_share", known(r.good_share)}}},
          {"preemptions", r.preemptions}, {"prefix_hit_rate", known(r.prefix_hit_rate)}, {"duration_s", known(r.duration_s)}, {"gpus", gpus_of(setup)}, {"gpu_hours", known(r.gpu_hours)}, {"busy_share", known(r.busy_share)},
          {"kv_tokens", r.kv_tokens}, {"cache_blocks", r.pool_blocks}, {"most_blocks_used", r.most_blocks_used}, {"passes", r.counts.passes},
          {"prefilled_tokens", r.counts.prefilled_tokens}, {"emitted_tokens", r.counts.emitted_tokens}, {"evidence", sim::name_of(r.evidence)}, {"provenance", "computed"}};
}

}  // namespace kvatlas::answers

#include "answers/simulate.hpp"

#include <algorithm>

namespace kvatlas::answers {

namespace {

Json number_or_null(double value, bool known) { return known ? Json(value) : Json(nullptr); }
Json positive_or_null(double value) { return number_or_null(value, value > 0); }

Json memory_record(const sim::Memory& m) {
  return {{"weights_bytes", m.weights_bytes}, {"cache_bytes", m.cache_bytes}, {"workspace_bytes", m.workspace_bytes},
          {"peak_bytes", m.peak_bytes}, {"total_bytes", m.total_bytes}, {"available_bytes", m.available_bytes}, {"fits", m.fits},
          {"max_batch", m.max_batch}, {"kv_tokens", m.kv_tokens}, {"binding", m.binding.empty() ? Json(nullptr) : Json(m.binding)},
          {"provenance", "computed"}};
}

Json breakdown(const std::vector<sim::StepPart>& parts) {
  Json rows = Json::array();
  for (const sim::StepPart& p : parts)
    rows.push_back({{"part", p.part}, {"ms", 1e3 * p.seconds}, {"bound_by", sim::name_of(p.bound)}, {"bytes", p.bytes},
                    {"flops", p.flops}, {"launches", p.launches}, {"provenance", "computed"}});
  return rows;
}

Json interval(const sim::StepFigures& f) {
  return {{"low_ms", 1e3 * f.low_s}, {"high_ms", 1e3 * f.high_s}, {"evidence", sim::name_of(f.evidence)}, {"coverage", 0.8}, {"provisional", true},
          {"provenance", "computed"}};
}

}  // namespace

sim::Evaluator baseline_of(sim::Deployment d) {
  d.recipe = Recipe::parse("full");
  d.released_plan = false;
  return sim::Evaluator(std::move(d));
}

Simulation microscope(const sim::Evaluator& e, Tokens context, int batch) {
  Simulation a;
  a.step = e.explain_step(context, batch);
  a.memory = e.memory(context, context, batch);
  const sim::StepFigures& f = a.step.figures;
  const sim::StepFigures full = baseline_of(e.deployment()).step(context, batch);
  if (f.step_s > 0) a.speedup_decode_only = full.step_s / f.step_s;
  if (!f.fits) a.why_not = a.memory.binding;
  const int replicas = e.deployment().dp;
  a.json = {{"mode", "decode only, prefill excluded"}, {"context", context.value}, {"batch", batch}, {"requests_per_s", nullptr},
            {"tokens_per_s", f.tokens_per_s(batch) * replicas}, {"step_ms", 1e3 * f.step_s}, {"ttft_ms", nullptr},
            {"tpot_ms", 1e3 * f.step_s}, {"speedup", nullptr}, {"speedup_decode_only", a.speedup_decode_only ? Json(*a.speedup_decode_only) : Json(nullptr)},
            {"size_factor", e.size_factor(context)}, {"bound_by", sim::name_of(f.bound)}, {"interval", interval(f)},
            {"energy_j_per_token", positive_or_null(f.energy_j / batch)}, {"energy_provenance", "assumed"}, {"usd_per_mtok", nullptr}, {"usd_provenance", "assumed"}};
  return a;
}

Simulation workload(const sim::Evaluator& e, const sim::Workload& w) {
  Simulation a;
  const sim::WorkloadFigures f = e.workload(w);
  const sim::WorkloadFigures full = baseline_of(e.deployment()).workload(w);
  a.why_not = f.feasible ? "" : f.why_not;
  if (f.feasible && full.feasible && full.requests_per_s > 0) {
    a.speedup = f.requests_per_s / full.requests_per_s;
    if (f.step_s > 0 && full.step_s > 0)
      a.speedup_decode_only = (static_cast<double>(f.concurrency) / f.step_s) / (static_cast<double>(full.concurrency) / full.step_s);
  }
  // The breakdown shows the step in the middle of the output, at the concurrency that was found.
  const Tokens middle = w.prompt + Tokens(w.output.value / 2);
  const int batch = static_cast<int>(std::max<std::int64_t>(1, f.concurrency));
  a.batch = batch;
  a.step = e.explain_step(w.prompt, middle, batch);
  a.memory = e.memory(w.prompt, w.prompt + w.output, batch);
  const bool ok = f.feasible;
  a.json = {{"mode", "workload"}, {"prompt", w.prompt.value}, {"output", w.output.value}, {"feasible", ok},
            {"why_not", ok ? Json(nullptr) : Json(f.why_not)}, {"concurrency", ok ? Json(f.concurrency) : Json(nullptr)},
            {"requests_per_s", number_or_null(f.requests_per_s, ok)}, {"tokens_per_s", number_or_null(f.tokens_per_s, ok)},
            {"step_ms", number_or_null(1e3 * f.step_s, ok)}, {"ttft_ms", number_or_null(1e3 * f.ttft_s, ok)},
            {"tpot_ms", number_or_null(1e3 * f.tpot_s, ok)}, {"prefill_ms", number_or_null(1e3 * f.prefill_s, ok)},
            {"speedup", a.speedup ? Json(*a.speedup) : Json(nullptr)},
            {"speedup_decode_only", a.speedup_decode_only ? Json(*a.speedup_decode_only) : Json(nullptr)},
            {"size_factor", f.size_factor}, {"bound_by", sim::name_of(f.bound)}, {"interval", interval(a.step.figures)},
            {"interval_requests_per_s", ok ? Json{{"low", f.low_requests_per_s}, {"high", f.high_requests_per_s}, {"evidence", sim::name_of(f.evidence)}, {"provenance", "computed"}} : Json(nullptr)},
            {"energy_j_per_token", number_or_null(f.energy_j_per_token, ok && f.energy_j_per_token > 0)}, {"energy_provenance", "assumed"},
            {"usd_per_mtok", number_or_null(f.usd_per_mtok, ok && f.usd_per_mtok > 0)}, {"usd_provenance", "assumed"}};
  return a;
}

Json document(const Simulation& a, const sim::Deployment& d) {
  Json parallel{{"tp", d.tp}, {"pp", d.pp}, {"dp", d.dp}, {"ep", d.ep}};
  Json out{{"model", d.model->slug}, {"gpu", sim::canonical(d.gpu)}, {"method", d.recipe.canonical()}, {"weights", sim::name_of(d.weights)},
          {"engine", (d.engine != nullptr ? *d.engine : sim::default_engine()).slug}, {"plan", d.released_plan ? "released" : "ideal"}, {"parallel", parallel},
          {"memory", memory_record(a.memory)}, {"breakdown", breakdown(a.step.parts)}};
  out.update(a.json);
  return out;
}

}  // namespace kvatlas::answers

#include "sweeps/json.hpp"

#include <cmath>

namespace kvatlas::sweep {

using nlohmann::json;

namespace {

json maybe(const std::optional<double>& v) { return v ? json(*v) : json(nullptr); }
json finite(double v) { return std::isfinite(v) ? json(v) : json(nullptr); }

/// Power and price are assumed, and so is what is computed from them alone.
const char* provenance_of(const std::string& figure) { return figure.starts_with("energy") || figure.starts_with("usd") ? "assumed" : "computed"; }

json params_of(const Recipe& recipe) {
  const MethodChoice& c = recipe.rules().back().key;
  json out = json::object();
  for (std::size_t i = 0; i < c.method->params.size(); ++i) {
    const ParamSpec& spec = c.method->params[i];
    json& value = out[spec.name];
    if (spec.type == ParamType::flag) value = c.row[i] != 0;
    else if (spec.type == ParamType::choice) value = format_value(spec, c.row[i]);
    else if (spec.type == ParamType::integer) value = static_cast<std::int64_t>(c.row[i]);
    else value = c.row[i];
  }
  return out;
}

}  // namespace

json to_json(const SweepReport& r, const std::optional<std::string>& db) {
  std::vector<std::string> left_out = r.left_out;
  left_out.insert(left_out.end(), r.without_plan.begin(), r.without_plan.end());
  json out{{"points", r.points},   {"stored", r.stored},             {"skipped", r.skipped},         {"infeasible", r.infeasible}, {"seconds", r.seconds},
           {"points_per_s", r.stored > 0 ? json(r.points_per_s) : json(nullptr)}, {"db", db ? json(*db) : json(nullptr)},
           {"interrupted", r.interrupted}, {"left_out", left_out}, {"provenance", "computed"}};
  if (!db) out["evaluated_per_s"] = r.points_per_s;
  return out;
}

json to_json(const MergeReport& r) { return {{"rows", r.rows}, {"conflicts", r.conflicts}, {"examples", r.examples}, {"written", r.written}, {"provenance", "computed"}}; }

json to_json(const DiffReport& r) {
  json changed = json::array();
  for (const ChangedPoint& p : r.changed) {
    json figures = json::array();
    for (const FigureChange& f : p.figures) figures.push_back({{"figure", f.figure}, {"a", f.a}, {"b", f.b}, {"change", finite(f.change)}, {"provenance", provenance_of(f.figure)}});
    const bool workload = p.prompt.has_value();
    json row{{"key", p.key}, {"configuration", json::parse(p.configuration)}, {"context", p.context}, {"batch", workload && p.batch == 0 ? json(nullptr) : json(p.batch)},
             {"worst", finite(p.worst)}, {"figures", figures}};
    if (workload) row.update({{"prompt", *p.prompt}, {"output", *p.output}});
    changed.push_back(std::move(row));
  }
  return {{"changed", changed}, {"changed_count", r.changed_count}, {"equal", r.equal}, {"only_a", r.only_a}, {"only_b", r.only_b}, {"provenance", "computed"}};
}

json to_json(const Quality& q) {
  return {{"value", maybe(q.value)},
          {"grade", q.grade.empty() ? json(nullptr) : json(q.grade)},
          {"model", q.model.empty() ? json(nullptr) : json(q.model)},
          {"proxy", q.grade == "X"},
          {"source", q.source},
          {"provenance", q.provenance.empty() ? json(nullptr) : json(q.provenance)}};
}

json to_json(const Recommendation& r) {
  const sim::WorkloadFigures& f = r.figures;
  return {{"rank", r.rank},
          {"method", r.recipe.main().slug},
          {"recipe", r.recipe.canonical()},
          {"params", params_of(r.recipe)},
          {"requests_per_s", f.requests_per_s},
          {"interval", {{"low_requests_per_s", f.low_requests_per_s}, {"high_requests_per_s", f.high_requests_per_s}, {"evidence", sim::name_of(f.evidence)}, {"provenance", "computed"}}},
          {"tokens_per_s", f.tokens_per_s},
          {"ttft_ms", f.ttft_s * 1e3},
          {"tpot_ms", f.tpot_s * 1e3},
          {"concurrency", f.concurrency},
          {"cache_bytes", f.cache_bytes},
          {"peak_bytes", f.peak_bytes},
          {"speedup", maybe(r.speedup)},
          {"speedup_decode_only", maybe(r.speedup_decode_only)},
          {"size_factor", f.size_factor},
          {"energy_j_per_token", finite(f.energy_j_per_token)},
          {"energy_provenance", "assumed"},  // of the power that it is computed from
          {"quality", to_json(r.quality)},
          {"deployable", r.deployable},
          {"research", r.deployable.empty() && r.recipe.canonical() != "full"},
          {"best_of_method", r.best_of_method},
          {"forgets", r.forgets},
          {"chance", r.chance ? json{{"probability_best", r.chance->best}, {"expected_regret", r.chance->regret}, {"choices", r.chance->among}, {"among", r.chance->offered ? "advisable" : "all"}, {"provenance", "computed"}}
                              : json(nullptr)},
          {"why", r.why},
          {"simulated", r.served ? json{{"requests_per_s", r.served->requests_per_s},
                                        {"ttft_p99_ms", r.served->ttft_p99_s * 1e3},
                                        {"tpot_p99_ms", r.served->tpot_p99_s * 1e3},
                                        {"concurrency", r.served->concurrency},
                                        {"preemptions", r.served->preemptions},
                                        {"provenance", "computed"}}
                                 : json(nullptr)},
          {"bound_by", sim::name_of(f.bound)},
          {"provenance", "computed"}};
}

json to_json(const RecommendReport& r) {
  json ranked = json::array(), excluded = json::array(), uncertain = json::array();
  for (const auto* list : {&r.deployable, &r.research})
    for (const Recommendation& one : *list) ranked.push_back(to_json(one));
  for (const Exclusion& e : r.excluded) excluded.push_back({{"method", e.method}, {"why", e.why}});
  for (const UncertainPair& u : r.uncertain) uncertain.push_back({{"a", u.a}, {"b", u.b}, {"settle_with", u.settle_with}});
  return {{"recommendations", ranked}, {"excluded", excluded}, {"uncertain", uncertain}, {"binds", r.binds},
          {"settle_with", r.settle ? json{{"recipe", r.settle->recipe}, {"command", r.settle->command}, {"expected_regret", r.settle->regret}, {"expected_regret_after", r.settle->regret_measured}, {"provenance", "computed"}}
                                   : json(nullptr)},
          {"advised", r.advised ? json{{"recipe", r.advised->recipe.canonical()}, {"rank", r.advised->rank}, {"why", r.advised_why}} : json(nullptr)}};
}

}  // namespace kvatlas::sweep

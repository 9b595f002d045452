#include "sweeps/recommend.hpp"

#include <algorithm>
#include <fmt/core.h>
#include <map>
#include <memory>
#include <set>

#include "core/errors.hpp"
#include "core/parallel.hpp"
#include "models/registry.hpp"
#include "reference/registry.hpp"
#include "sweeps/caches.hpp"
#include "sweeps/chances.hpp"
#include "sweeps/configuration.hpp"
#include "sweeps/recommend_why.hpp"
#include "sweeps/rerank.hpp"
#include "sweeps/settings.hpp"

namespace kvatlas::sweep {

namespace {

/// Below this a difference from the plain cache is not worth a change of deployment.
constexpr double kWorthwhile = 1.02;
constexpr std::size_t kUncertainAmong = 5;  // overlaps are told among the first so many

/// Engines that offer every method of the recipe; `full` runs everywhere.
std::vector<std::string> engines_of(const Recipe& recipe) {
  std::optional<std::vector<std::string>> common;
  for (const Rule& rule : recipe.rules())
    for (const MethodChoice* c : {&rule.key, &rule.value}) {
      if (c->method->family == Family::baseline) continue;
      std::vector<std::string> offered;
      for (const Deployable& d : c->method->deployable)
        if (!common || std::find(common->begin(), common->end(), d.engine) != common->end()) offered.emplace_back(d.engine);
      common = offered;
    }
  if (common) return *common;
  std::set<std::string> every;
  for (const Method* m : all_methods())
    for (const Deployable& d : m->deployable) every.insert(d.engine);
  return {every.begin(), every.end()};
}

bool is_plain(const Recipe& r) { return r.canonical() == "full"; }

struct Candidate {
  Recipe recipe = Recipe::parse("full");
  sim::WorkloadFigures figures;
  bool forgets = false;
  std::optional<std::string> why_not;
};

Candidate evaluate(const RecommendRequest& request, const Recipe& recipe) {
  Candidate c{.recipe = recipe, .figures = {}, .why_not = {}};
  sim::Deployment d = request.deployment;
  d.recipe = recipe;
  c.why_not = sim::why_not(d);
  for (const Rule& r : recipe.rules())
    for (const MethodChoice* m : {&r.key, &r.value})
      if (!writes_in_order(*m->method))
        c.why_not = std::ranges::find(m->method->needs, Need::marked_spans) != m->method->needs.end()
                        ? cat("lets go what the model's own marks say is over; ", d.model->name, " writes none")
                        : cat("serves diffusion language models; ", d.model->name, " writes from left to right");
  if (c.why_not) return c;
  const sim::Evaluator evaluator(d);
  c.figures = evaluator.workload(request.workload);
  c.forgets = forgets(recipe.bind(d.model->cache), request.workload.prompt + request.workload.output);
  if (!c.figures.feasible) c.why_not = c.figures.why_not;
  if (c.figures.feasible && request.memory_gib && c.figures.peak_bytes > *request.memory_gib * 1073741824.0)
    c.why_not = fmt::format("needs {:.1f} GiB of memory, must be at most {:.1f} GiB", c.figures.peak_bytes / 1073741824.0, *request.memory_gib);
  return c;
}

double decode_rate(const sim::WorkloadFigures& f) { return f.step_s > 0 ? static_cast<double>(f.concurrency) / f.step_s : 0; }

/// A sentence when the engine that the request names does not offer the recipe.
std::optional<std::string> not_offered(const RecommendRequest& request, const Recommendation& r) {
  if (request.deployable && std::find(r.deployable.begin(), r.deployable.end(), *request.deployable) == r.deployable.end() && !is_plain(r.recipe))
    return cat(*request.deployable, " does not offer it", r.deployable.empty() ? ": research only" : "");
  return std::nullopt;
}

/// A sentence when the quality that the request asks for is not known to be there.
std::optional<std::string> quality_refused(const RecommendRequest& request, const Recommendation& r) {
  if (!request.min_quality) return std::nullopt;
  if (!r.quality.value) return cat("quality unknown (accepted evidence: ", spell_grades(request.quality_evidence), "), must be at least ", *request.min_quality);
  if (*r.quality.value < *request.min_quality) return fmt::format("quality {:.4f} ({}), must be at least {}", *r.quality.value, r.quality.grade, *request.min_quality);
  return std::nullopt;
}

void check(const RecommendRequest& request) {
  if (request.deployment.model == nullptr) throw InvalidArgument("model is missing, must be a slug or a path to a config.json");
  if (request.workload.prompt.value < 1) throw InvalidArgument(cat("prompt is ", request.workload.prompt.value, ", must be at least 1 token"));
  if (request.workload.output.value < 1) throw InvalidArgument(cat("output is ", request.workload.output.value, ", must be at least 1 token"));
  if (request.min_quality && !(*request.min_quality >= 0 && *request.min_quality <= 1)) throw InvalidArgument(cat("min-quality is ", *request.min_quality, ", must be from 0 to 1 (the retained share)"));
  if (request.memory_gib && !(*request.memory_gib > 0)) throw InvalidArgument(cat("memory-gib is ", *request.memory_gib, ", must be above 0"));
  if (request.deployable) {
    std::set<std::string_view> names;
    for (const Method* m : all_methods())
      for (const Deployable& d : m->deployable) names.insert(d.engine);
    const std::vector<std::string_view> list(names.begin(), names.end());
    if (!names.contains(*request.deployable)) throw InvalidArgument(cat("deployable: ", unknown_name("engine", *request.deployable, list)));
  }
}

/// Chooses the setting that speaks for each method; returns the methods' slugs.
std::set<std::string> mark_speakers(std::vector<Recommendation>& ranked, const std::vector<Recipe>& candidates) {
  std::map<std::string, Recommendation*> speakers;
  for (Recommendation& r : ranked)  // by rank: the fastest that was judged
    if (r.quality.value) speakers.try_emplace(r.recipe.main().slug, &r);
  for (const Recipe& c : candidates)
    for (Recommendation& r : ranked)
      if (r.recipe.canonical() == c.canonical()) speakers.try_emplace(r.recipe.main().slug, &r);
  std::set<std::string> slugs;
  for (const auto& [slug, r] : speakers) {
    r->best_of_method = true;
    slugs.insert(slug);
  }
  return slugs;
}

/// What to run: the first by rank that an engine offers and that was judged, or that at least forgets nothing by construction.
void advise(const std::vector<Recommendation>& ranked, const RecommendRequest& request, OfferedFates fates, RecommendReport& report) {
  const auto offered = [](const Recommendation& r) { return r.best_of_method && !r.deployable.empty(); };
  for (const Recommendation& r : ranked)
    if (offered(r) && !is_plain(r.recipe) && (r.quality.value || !r.forgets)) {
      report.advised = r;
      report.advised_why = r.quality.value ? "the fastest that an engine offers among those whose quality is known"
                                           : "the fastest that an engine offers among those that forget no token; no quality evidence exists, so judge it on your task first";
      return;
    }
  for (const Recommendation& r : ranked)
    if (is_plain(r.recipe)) {
      report.advised = r;
      for (const Recommendation& other : ranked) fates.forgetful = fates.forgetful || (other.forgets && !other.deployable.empty());
      report.advised_why = plain_sentence(fates, request);
      return;
    }
  for (const Recommendation& r : ranked)
    if (offered(r)) {
      report.advised = r;
      report.advised_why = "the only kind that an engine offers and that fits: it forgets tokens, so judge it on your task first";
      return;
    }
}

/// One line a method: the recipe only where another setting of the method is recommended.
void collect_exclusions(const std::map<std::string, std::vector<Exclusion>>& by_method, const std::set<std::string>& recommended, RecommendReport& report) {
  for (const auto& [slug, list] : by_method) {
    if (recommended.contains(slug)) {
      for (const Exclusion& e : list) report.excluded.push_back(e);
    } else {  // defaults come first among a method's settings: their reason speaks for it
      const std::size_t others = list.size() - 1;
      report.excluded.push_back({slug, cat(list.front().why, others > 0 ? cat(" (", others, others == 1 ? " other setting" : " other settings", " likewise excluded)") : std::string())});
    }
  }
}

}  // namespace

RecommendReport recommend(const RecommendRequest& given) {
  check(given);
  RecommendRequest request = given;
  request.quality_evidence = parse_grades(given.quality_evidence);
  if (request.candidates.empty()) {
    request.candidates = several_settings().recipes;
    for (const Method* m : all_methods())
      if (!writes_in_order(*m)) request.candidates.push_back(Recipe::parse(m->slug));  // to be named among what is not advised
  }
  if (std::none_of(request.candidates.begin(), request.candidates.end(), is_plain)) request.candidates.insert(request.candidates.begin(), Recipe::parse("full"));

  std::vector<std::unique_ptr<Candidate>> results(request.candidates.size());
  parallel_for(static_cast<std::int64_t>(results.size()), [&](std::int64_t i) {
    const auto at = static_cast<std::size_t>(i);
    results[at] = std::make_unique<Candidate>(evaluate(request, request.candidates[at]));
  });

  RecommendReport report;
  for (const auto& c : results)
    if (is_plain(c->recipe)) {
      if (c->why_not) report.plain_why_not = *c->why_not;
      else report.plain = c->figures;
    }
  report.binds = report.plain ? binding_sentence(*report.plain, request.workload, true) : cat("a plain cache cannot serve this: ", report.plain_why_not);

  std::map<std::string, std::vector<Exclusion>> excluded;
  std::vector<Recommendation> ranked;
  OfferedFates fates;
  for (const auto& c : results) {
    const std::string slug = c->recipe.main().slug;
    fates.asked += is_plain(c->recipe) ? 0 : 1;
    const auto exclude = [&](std::string why) { excluded[slug].push_back({c->recipe.canonical(), std::move(why)}); };
    if (c->why_not) {
      exclude(*c->why_not);
      continue;
    }
    Recommendation r{.recipe = c->recipe, .forgets = c->forgets, .figures = c->figures, .speedup = {}, .speedup_decode_only = {}, .quality = quality_of(request.evidence, *request.deployment.model, c->recipe, request.quality_evidence), .deployable = engines_of(c->recipe), .why = {}};
    if (report.plain && report.plain->requests_per_s > 0) {
      r.speedup = c->figures.requests_per_s / report.plain->requests_per_s;
      if (decode_rate(*report.plain) > 0) r.speedup_decode_only = decode_rate(c->figures) / decode_rate(*report.plain);
    }
    if (const auto reason = not_offered(request, r)) {
      exclude(*reason);
      continue;
    }
    const bool counted = !is_plain(r.recipe) && !r.deployable.empty();
    fates.offered += counted ? 1 : 0;
    if (const auto reason = quality_refused(request, r)) {
      fates.quality_refused += counted ? 1 : 0;
      exclude(*reason);
      continue;
    }
    fates.research = fates.research || r.deployable.empty();
    if (!is_plain(r.recipe) && r.speedup && *r.speedup < kWorthwhile) {
      exclude(no_gain_sentence(*r.speedup, c->figures, *report.plain, request.workload));
      continue;
    }
    r.why = gain_sentence(r, report.plain, request.workload);
    ranked.push_back(std::move(r));
  }
  std::stable_sort(ranked.begin(), ranked.end(), [](const Recommendation& a, const Recommendation& b) { return a.figures.requests_per_s > b.figures.requests_per_s; });
  const std::set<std::string> recommended = mark_speakers(ranked, request.candidates);
  rerank(request, ranked);
  for (std::size_t i = 0; i < ranked.size(); ++i) ranked[i].rank = static_cast<int>(i) + 1;
  add_chances(request, ranked, report);
  advise(ranked, request, fates, report);
  collect_exclusions(excluded, recommended, report);
  std::vector<const Recommendation*> first;
  for (const Recommendation& r : ranked)
    if (r.best_of_method && first.size() < kUncertainAmong) first.push_back(&r);
  for (std::size_t i = 0; i + 1 < first.size(); ++i)
    if (first[i]->figures.low_requests_per_s < first[i + 1]->figures.high_requests_per_s)
      report.uncertain.push_back({first[i]->recipe.canonical(), first[i + 1]->recipe.canonical(),
                                  cat("measure one decode step of both at ", (request.workload.prompt + request.workload.output).value, " tokens on ", request.deployment.gpu.slug,
                                      ", then kvatlas calibrate --measurements DIR --out FILE")});
  for (Recommendation& r : ranked) (is_plain(r.recipe) || !r.deployable.empty() ? report.deployable : report.research).push_back(std::move(r));
  return report;
}

}  // namespace kvatlas::sweep

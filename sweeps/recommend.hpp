// Which method to run: every method at several settings under one workload, ranked by requests/s within the SLO.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "models/model.hpp"
#include "reference/compose/recipe.hpp"
#include "simulator/evaluator.hpp"
#include "sweeps/quality_lookup.hpp"

namespace kvatlas::sweep {

struct RecommendRequest {
  sim::Deployment deployment;                 // model, GPU, weights, engine, parallelism; its recipe is not read
  sim::Workload workload;
  std::vector<Recipe> candidates;             // empty: the registry at its defaults and the common settings
  std::optional<double> memory_gib;           // highest memory of one GPU, everything included
  std::optional<double> min_quality;          // retained share, 0 to 1
  std::string quality_evidence = "mp";        // accepted grades
  std::optional<std::string> deployable;      // engine that must offer the method
  QualityEvidence evidence;                   // empty: nothing is known
};

/// What the serving simulator makes of the workload: requests one by one, latencies with their tails.
struct Served {
  double requests_per_s = 0;                  // that keep the SLO, in steady state
  double ttft_p99_s = 0, tpot_p99_s = 0;
  std::int64_t concurrency = 0, preemptions = 0;
};

/// How a choice fares when rates are drawn from their intervals.
struct Chance {
  double best = 0;                            // share of the draws in which it is the fastest
  double regret = 0;                          // mean share of the fastest one's requests/s that choosing it gives away
  int among = 0;                              // so many choices
  bool offered = false;                       // ... which are those that may be advised; else all that speak for their methods
};

/// The one measurement after which the best choice gives away least.
struct Settle {
  std::string recipe, command;
  double regret = 0, regret_measured = 0;     // of the best choice now, and once its figure is known
};

struct Recommendation {
  int rank = 0;                               // the first 20 by the closed form are ranked by what they serve when simulated, the others by the closed form
  Recipe recipe = Recipe::parse("full");
  bool best_of_method = false;                // speaks for its main method: the fastest with accepted quality evidence; without evidence
                                              // the first in the order of the candidates, so a method's defaults: speed alone picks the most lossy
  bool forgets = false;                       // its cache has a fixed size: tokens past it are gone, whatever the prompt
  sim::WorkloadFigures figures;
  std::optional<double> speedup;              // requests/s over those of `full`, prefill included
  std::optional<double> speedup_decode_only;  // decoded tokens/s over those of `full`, prefill excluded
  Quality quality;
  std::vector<std::string> deployable;        // engines that offer it today; empty: research
  std::string why;                            // one sentence: what it gains and what binds
  std::optional<Served> served{};             // of those that were simulated
  std::optional<Chance> chance{};             // of those that speak for their methods
};

struct Exclusion {
  std::string method;                         // slug, or recipe where its other settings are recommended
  std::string why;
};

struct UncertainPair {
  std::string a, b;                           // recipes whose intervals overlap, `a` ranked before `b`
  std::string settle_with;                    // the command that would decide
};

struct RecommendReport {
  std::vector<Recommendation> deployable;     // offered by an engine today; `full` is one of them
  std::vector<Recommendation> research;
  std::vector<Exclusion> excluded;
  std::vector<UncertainPair> uncertain;
  std::optional<Recommendation> advised;      // what to run: see advised_why
  std::string advised_why;                    // one sentence: how it was chosen
  std::string binds;                          // one sentence: what binds the workload under `full`
  std::optional<sim::WorkloadFigures> plain;  // `full`, when it can serve the workload
  std::string plain_why_not;
  std::optional<Settle> settle{};             // none where no measurement would change the choice
};

/// throws InvalidArgument for the request: a workload without tokens, a quality outside 0 to 1, an unknown engine or grade
RecommendReport recommend(const RecommendRequest& request);

}  // namespace kvatlas::sweep

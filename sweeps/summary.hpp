// What a store says at a glance: for every GPU and model, the plain cache beside the best recipe at one context.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace kvatlas::sweep {

/// Decode throughput at the batch where it is highest; prefill is not part of it.
struct BestPoint {
  std::string recipe;
  int batch = 0;
  double tokens_per_s = 0;
  double size_factor = 1;
};

struct PairSummary {
  std::string gpu, model;               // a changed GPU by its canonical text; a model by its slug, or its identity where two share a slug
  std::int64_t points = 0;              // of all contexts
  std::optional<BestPoint> plain;       // `full`, where it fits at all
  std::optional<BestPoint> deployable;  // best recipe that an engine offers today
  std::optional<BestPoint> best;        // best of all
};

struct StoreSummary {
  std::int64_t context = 0;             // what the pairs are compared at: 32K where the store has it, else its longest
  std::int64_t points = 0;
  std::int64_t workloads = 0;           // served by a configuration, one row each
  std::int64_t configurations = 0;      // with at least one point
  std::int64_t designs = 0;             // distinct (configuration, context)
  std::int64_t file_bytes = 0;
  std::vector<PairSummary> pairs;       // by GPU, then model
};

/// throws IoError for the store
StoreSummary summarize(const std::filesystem::path& store);

}  // namespace kvatlas::sweep

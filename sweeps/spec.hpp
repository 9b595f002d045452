// The spec of a sweep: a JSON document that names models, GPUs, methods and workloads, with lists and ranges.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "models/model.hpp"
#include "reference/compose/recipe.hpp"
#include "simulator/evaluator.hpp"
#include "sweeps/hash128.hpp"

namespace kvatlas::sweep {

/// Batch sizes: a list, or every size of a geometric series up to the largest that fits the GPU's memory.
struct Batches {
  std::vector<int> list{};  // ascending; empty when to_memory_limit
  bool to_memory_limit = false;
  int per_doubling = 4;     // sizes of the series between n and 2n
};

/// Sizes of the series with `per_doubling` steps from 1 to `limit`, and the limit itself; ascending, each once.
std::vector<int> batch_series(int per_doubling, std::int64_t limit);

struct Spec {
  std::string name;
  std::vector<models::Model> models;
  std::vector<sim::Gpu> gpus;
  std::vector<Recipe> recipes;             // expanded, each canonical spelling once, in the order written
  std::vector<bool> released;              // plans: false = ideal, true = released
  std::vector<Tokens> contexts;            // ascending; empty when only workloads are swept
  Batches batches;
  std::vector<sim::WeightFormat> weights;
  std::vector<const sim::Engine*> engines;
  std::vector<int> tp;
  double gpu_memory_utilization = 0.9;
  Tokens chunk{8192};
  std::vector<sim::Workload> workloads;
  std::vector<std::string> left_out;       // settings that a table offers and a method's range refuses, as sentences
  std::string text;                        // the document, canonical: sorted keys, no white space
  Key hash;                                // of text
};

/// Parses a spec.
/// text     the document
/// origin   what messages call it, as a rule its path
/// folder   where relative paths of models start
/// throws   InvalidArgument "ORIGIN: PATH is VALUE, must be ..." ; IoError when a model's file cannot be read
Spec parse_spec(std::string_view text, std::string_view origin, const std::filesystem::path& folder = {});

/// Reads and parses a file. throws IoError when it cannot be read
Spec load_spec(const std::filesystem::path& path);

/// "ttft_ms=2000,tpot_ms=50"; ttft_p99_ms and tpot_p99_ms are other spellings of the two.
/// throws InvalidArgument
sim::Slo parse_slo(std::string_view text);

/// The stable spelling of a workload: JSON with sorted keys.
nlohmann::json to_json(const sim::Workload& workload);

}  // namespace kvatlas::sweep

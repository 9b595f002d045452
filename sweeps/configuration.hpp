// A configuration: everything that a point has beside its context and batch, as canonical text and as a key.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "simulator/evaluator.hpp"
#include "sweeps/hash128.hpp"
#include "sweeps/spec.hpp"

namespace kvatlas::sweep {

/// What identifies a model in a key: the slug of a shipped model, slug and fingerprint of an imported one. Shipped
/// descriptors are corrected over time; their points keep their keys so that two stores can be compared.
std::string model_identity(const models::Model& model);

/// JSON with sorted keys and shortest round-trip numbers; equal texts mean equal deployments.
std::string canonical(const sim::Deployment& deployment);

/// Configurations of one group share model, GPU, weights, engine and parallelism, so one plain cache is their baseline.
struct Group {
  sim::Deployment baseline;  // of the recipe `full`
};

struct Configuration {
  std::size_t model = 0, gpu = 0, recipe = 0, group = 0;  // places in the spec, and in WorkList::groups
  sim::WeightFormat weights = sim::WeightFormat::bf16;
  const sim::Engine* engine = nullptr;
  int tp = 1;
  bool released = false;
  std::string text;  // canonical
  Key key;           // murmur3 of text
};

/// Shard `index` of `count`: configurations whose key falls to it. A configuration's points stay together, so a change
/// of other axes moves none of them.
struct Shard {
  int index = 1, count = 1;  // 1 <= index <= count
  bool holds(const Key& configuration) const { return configuration.h2 % static_cast<std::uint64_t>(count) == static_cast<std::uint64_t>(index - 1); }
};

/// "2/5"; throws InvalidArgument
Shard parse_shard(std::string_view text);

/// The work of a spec in the order in which it is done: grouped by baseline, then recipe.
struct WorkList {
  std::vector<Group> groups;
  std::vector<Configuration> configurations;
  std::vector<std::string> left_out;  // released plans of methods that have none, as sentences
};

WorkList work_list(const Spec& spec, const Shard& shard = {});

/// The deployment of a configuration; `spec` must outlive it (it points to the model).
sim::Deployment deployment(const Spec& spec, const Configuration& configuration);

}  // namespace kvatlas::sweep

// Evaluation of one configuration: all its contexts, batches and workloads, beside the plain cache of its group.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "sweeps/configuration.hpp"
#include "sweeps/store.hpp"

namespace kvatlas::sweep {

/// The plain cache of one group: computed once, by the first worker that asks, shared by all configurations.
class Baseline {
 public:
  Baseline(const Spec& spec, const Group& group) : spec_(&spec), group_(&group) {}

  struct AtContext {
    std::vector<int> batches;      // ascending, that fit
    std::vector<double> step_s;    // of each
    double tokens_per_s = 0;       // at the largest of them; 0 when none fits
  };
  /// Nothing where `full` itself cannot serve the model.
  const AtContext* at(std::size_t context);                       // place in spec.contexts
  const sim::WorkloadFigures* workload(std::size_t workload);     // place in spec.workloads
  /// Step time of `full`, NaN where it does not fit.
  double step_s(std::size_t context, int batch);

 private:
  void prepare();
  const Spec* spec_;
  const Group* group_;
  std::once_flag once_;
  std::optional<sim::Evaluator> evaluator_;
  std::vector<AtContext> contexts_;
  std::vector<sim::WorkloadFigures> workloads_;
};

/// What is known before a configuration is evaluated.
struct ChunkInput {
  const Spec* spec = nullptr;
  const Configuration* configuration = nullptr;
  std::size_t place = 0;                // in the work list
  Baseline* baseline = nullptr;
  const KeySet* present = nullptr;      // keys to skip; nullptr: none
  const Sample* sample = nullptr;       // a stored point that must come out the same; nullptr: none
};

/// Evaluates a configuration and hands it on in blocks of at most kBlockPoints and one context; `emit` returns false to stop.
/// throws IoError when the sample comes out differently
inline constexpr std::size_t kBlockPoints = 4096;
void evaluate_chunk(const ChunkInput& input, const std::function<bool(Block&&)>& emit);

}  // namespace kvatlas::sweep

// The predictor's door: one deployment, prepared once, asked for steps, prompts, memory and whole workloads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/plan.hpp"
#include "core/units.hpp"
#include "models/model.hpp"
#include "reference/compose/recipe.hpp"
#include "simulator/engine.hpp"
#include "simulator/gpu.hpp"

namespace kvatlas::sim {

/// What bounds a part or a step.
enum class Bound : std::uint8_t { memory, unpack, tensor, vector, latency, link, memory_capacity };
const char* name_of(Bound bound);

/// How well a figure is backed by measurements.
enum class Evidence : std::uint8_t { fitted, extrapolated, other_gpu, uncalibrated_format };
const char* name_of(Evidence evidence);

/// A prediction with its 80% interval. Provisional until calibration lands, and labelled so in `note`.
struct Interval {
  double low = 0, high = 0;
  Evidence evidence = Evidence::extrapolated;
};

struct Deployment {
  const models::Model* model = nullptr;
  Gpu gpu{};
  Recipe recipe = Recipe::parse("full");
  WeightFormat weights = WeightFormat::bf16;
  int tp = 1, pp = 1, dp = 1, ep = 1;
  const Engine* engine = nullptr;       // nullptr: the default profile
  double gpu_memory_utilization = 0.9;
  Tokens chunk{8192};                   // tokens of one prefill chunk
  bool released_plan = false;           // cost the released code's plan instead of the ideal one
  bool warm_cache = false;              // reads that fit L2 run at L2 speed; a model's other layers evict them, so off
};

/// One decode step of a batch, flat: what a sweep stores a million times.
struct StepFigures {
  double step_s = 0;            // time of one step
  double attention_s = 0, matrix_s = 0, method_s = 0, other_s = 0;  // parts; method_s: selection, compression, append
  double low_s = 0, high_s = 0;  // interval of step_s
  double cache_bytes = 0;       // steady cache of the batch, all GPUs
  double peak_bytes = 0;        // highest memory of one GPU, weights and workspace included
  double cache_read_bytes = 0;  // bytes of the cache read by one step
  double energy_j = 0;          // per step, assumed power model
  Bound bound = Bound::memory;
  Evidence evidence = Evidence::extrapolated;
  bool fits = false;
  double tokens_per_s(int batch) const { return step_s > 0 ? batch / step_s : 0; }
};

struct StepPart {
  std::string part;             // "qkv_proj", "decode_attention", "page_score", "all_reduce", ...
  double seconds = 0;
  Bound bound = Bound::memory;
  double bytes = 0, flops = 0, launches = 0;
};

struct StepExplained {
  StepFigures figures;
  std::vector<StepPart> parts;
  std::vector<std::string> formulas;  // --explain: each figure with its numbers put in
};

struct Memory {
  double weights_bytes = 0, cache_bytes = 0, workspace_bytes = 0, peak_bytes = 0, total_bytes = 0, available_bytes = 0;  // of one GPU
  bool fits = false;
  std::int64_t max_batch = 0;   // sequences of this length that fit
  std::int64_t kv_tokens = 0;   // tokens of cache that fit
  std::string binding;          // the sentence that names what does not fit
};

struct Slo {
  std::optional<double> ttft_s{}, tpot_s{};
};

struct Workload {
  Tokens prompt{0}, output{0};
  double prefix_hit = 0;        // share of the prompt found in the prefix cache
  int turns = 1;
  std::optional<double> rate{};       // requests/s offered
  std::optional<int> concurrency{};   // requests in flight
  Slo slo{};
};

/// Closed-form steady state of a workload. Without rate or concurrency: the largest concurrency that fits memory and SLO.
struct WorkloadFigures {
  double requests_per_s = 0, tokens_per_s = 0;
  double low_requests_per_s = 0, high_requests_per_s = 0;
  double ttft_s = 0, tpot_s = 0, prefill_s = 0, step_s = 0;
  std::int64_t concurrency = 0;
  double cache_bytes = 0, peak_bytes = 0, size_factor = 1;
  double energy_j_per_token = 0, usd_per_mtok = 0;
  Bound bound = Bound::memory;
  Evidence evidence = Evidence::extrapolated;
  bool feasible = false;
  std::string why_not;          // the sentence when it is not
};

class StepModel;
struct StepMemo;

/// Immutable after construction, safe to share between threads.
class Evaluator {
 public:
  /// throws Unsupported when the recipe cannot serve the model's cache shape, InvalidArgument for a bad deployment
  explicit Evaluator(Deployment deployment);
  ~Evaluator();
  Evaluator(Evaluator&&) noexcept;
  Evaluator& operator=(Evaluator&&) noexcept;

  const Deployment& deployment() const;
  /// The microscope: one decode step at `context` cached tokens. Allocation-free for recipes of uniform methods.
  /// `memo`, of this evaluator and of one thread, spares what the steps asked before have in common.
  StepFigures step(Tokens context, int batch, StepMemo* memo = nullptr) const;
  StepExplained explain_step(Tokens context, int batch) const;
  /// The same step of sequences whose first `prompt` tokens came as the prompt and the others were generated; the microscope
  /// takes the whole context for the prompt.
  StepFigures step(Tokens prompt, Tokens context, int batch, StepMemo* memo = nullptr) const;
  StepExplained explain_step(Tokens prompt, Tokens context, int batch) const;
  /// Time of processing `batch` prompts of `prompt` tokens, the method's own work included.
  double prefill_s(Tokens prompt, int batch) const;
  StepExplained explain_prefill(Tokens prompt, int batch) const;
  Memory memory(Tokens prompt, Tokens context, int batch) const;
  WorkloadFigures workload(const Workload& w) const;
  /// Stored bytes of an uncompressed cache over stored bytes under the recipe.
  double size_factor(Tokens context) const;
  /// The same when only the first `prompt` of the context's tokens came as the prompt.
  double size_factor(Tokens prompt, Tokens context) const;

 private:
  const StepModel& model() const { return *model_; }
  std::unique_ptr<const StepModel> model_;
};

/// Sentence when the deployment cannot exist, nothing otherwise; the value form of the constructor's exceptions.
std::optional<std::string> why_not(const Deployment& deployment);

}  // namespace kvatlas::sim

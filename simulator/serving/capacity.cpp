#include "simulator/serving/capacity.hpp"

#include <algorithm>

namespace kvatlas::sim {

namespace {

// Totals that engines report: 79.2 of 80 GiB (H100, A100), 39.5 of 40, 23.57 of 24 (RTX 3090, 4090).
constexpr double kDriverBytes = 0.3 * 0x1p30, kDriverShare = 0.006;
// "Non-torch" memory of start-up logs: 0.13 to 0.35 GiB on one GPU, 0.54 to 0.55 with two ranks.
constexpr double kRuntimeBytes = 0.3 * 0x1p30, kRankRuntimeBytes = 0.25 * 0x1p30;

}  // namespace

CacheCapacity cache_capacity(const StepModel& model, const StartProfile& profile) {
  const Deployment& d = model.deployment();
  CacheCapacity c;
  const double board = *d.gpu.memory_bytes.value;
  c.share = (board - kDriverBytes - kDriverShare * board) * d.gpu_memory_utilization;
  c.weights = model.memory(Tokens(1), Tokens(1), d.dp).weights;
  c.runtime = kRuntimeBytes + (d.tp > 1 ? kRankRuntimeBytes : 0.0);
  // A pass holds the widest pair of activations, the product between them and three rows of the hidden width; sampling comes after it.
  const double layers = static_cast<double>(profile.batched_tokens) * model.activation_bytes();
  const double sampling = static_cast<double>(profile.sequences) * model.vocabulary() * profile.sampler_bytes;
  c.activations = std::max(layers, sampling);
  c.cache = c.share - c.weights - c.runtime - c.activations;
  return c;
}

}  // namespace kvatlas::sim

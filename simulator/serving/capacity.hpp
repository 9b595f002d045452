// Cache memory that an engine hands out at start-up: what its memory profile leaves of its share of the GPU.
#pragma once

#include <cstdint>

#include "simulator/step_model.hpp"

namespace kvatlas::sim {

/// How an engine measures before it sizes its cache: one pass at full load, every running sequence sampled.
struct StartProfile {
  std::int64_t batched_tokens = 8192;
  std::int64_t sequences = 256;
  /// Of one sequence and vocabulary entry while a token is sampled. vLLM up to 0.11 sorts float32 logits with their indices and
  /// keeps probabilities and sums beside them; later versions hold little more than the logits.
  double sampler_bytes = 8.0;
};
inline constexpr double kSortingSamplerBytes = 38.7;  // Llama-3.1-8B, Qwen3-0.6B, Qwen3-32B and gpt-oss start-up logs: 38.4 to 38.9

/// Bytes of one GPU.
struct CacheCapacity {
  double share = 0;        // the engine's part of what the driver leaves
  double weights = 0, runtime = 0, activations = 0;
  double cache = 0;        // the rest; negative when there is none
};

CacheCapacity cache_capacity(const StepModel& model, const StartProfile& profile);

}  // namespace kvatlas::sim

#include "reference/coding/cachegen/streaming.hpp"

#include "core/errors.hpp"

namespace kvatlas::cachegen {

StreamingPlan choose_levels(std::span<const ChunkSizes> chunks, std::span<const BytesPerSecond> bandwidth, Seconds objective,
                            Seconds recompute) {
  if (chunks.empty() || chunks.size() != bandwidth.size())
    throw InvalidArgument(cat("bandwidth has ", bandwidth.size(), " entries for ", chunks.size(), " chunks, must be one a chunk and at least one"));
  if (!(objective.value > 0)) throw InvalidArgument(cat("objective is ", objective.value, " s, must be above 0"));
  const Seconds share(objective.value / static_cast<double>(chunks.size()));
  StreamingPlan plan;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    if (!(bandwidth[i].value > 0)) throw InvalidArgument(cat("bandwidth[", i, "] is ", bandwidth[i].value, " B/s, must be above 0"));
    int level = 3;
    while (level > 0 && !(chunks[i][static_cast<std::size_t>(level - 1)] / bandwidth[i] < share)) --level;
    plan.levels.push_back(level);
    plan.time_to_first_token += level > 0 ? chunks[i][static_cast<std::size_t>(level - 1)] / bandwidth[i] : recompute;
  }
  return plan;
}

}  // namespace kvatlas::cachegen

// cachegen's choice of a level for every chunk of a prompt that comes over a network.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "core/units.hpp"

namespace kvatlas::cachegen {

/// Bytes of one chunk at levels 1, 2 and 3.
using ChunkSizes = std::array<Bytes, 3>;

struct StreamingPlan {
  std::vector<int> levels;  // of each chunk; 0: its keys and values are recomputed from the text
  Seconds time_to_first_token{0.0};
};

/// Every chunk gets an equal share of the time objective: the first of levels 3, 2, 1 that arrives within it at the
/// chunk's bandwidth, else the chunk is recomputed at a fixed cost. Times are added chunk after chunk.
/// throws   InvalidArgument if the spans differ in length or are empty, or a bandwidth or the objective is not above 0
/// source   CacheGen artifact, src/utils.py (equal shares; the paper's controller uses the time that is left)
StreamingPlan choose_levels(std::span<const ChunkSizes> chunks, std::span<const BytesPerSecond> bandwidth, Seconds objective,
                            Seconds recompute);

}  // namespace kvatlas::cachegen

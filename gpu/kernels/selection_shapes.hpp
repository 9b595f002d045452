// Shapes of the kernels that score, choose and compact, as kernels/shapes.hpp lists those of the others: what the executor runs, nvcc
// compiles and the static table lists.
#pragma once

#include "gpu/kernels/row_gather.hpp"
#include "gpu/kernels/top_k.hpp"

namespace kvatlas::gpu {

inline constexpr GatherShape kGatherShapes[] = {{64}, {128}, {256}};

/// Few threads for many rows of short contexts, many for few long ones.
inline constexpr TopKShape kTopKShapes[] = {{128}, {512}};

}  // namespace kvatlas::gpu

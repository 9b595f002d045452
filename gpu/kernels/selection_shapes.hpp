// Shapes of the kernels that score, choose and compact, as kernels/shapes.hpp lists those of the others: what the executor runs, nvcc
// compiles and the static table lists.
#pragma once

#include "gpu/kernels/row_gather.hpp"
#include "gpu/kernels/score_pool.hpp"
#include "gpu/kernels/top_k.hpp"
#include "gpu/kernels/window_scores.hpp"

namespace kvatlas::gpu {

inline constexpr GatherShape kGatherShapes[] = {{64}, {128}, {256}};

/// Few threads for many rows of short contexts, many for few long ones.
inline constexpr TopKShape kTopKShapes[] = {{128}, {512}};

inline constexpr WindowShape kWindowShapes[] = {{128, 4, Dtype::bf16}, {64, 1, Dtype::f16}, {256, 2, Dtype::bf16}};

/// Largest of the neighbours, mean of the neighbours.
inline constexpr PoolShape kPoolShapes[] = {{false}, {true}};

}  // namespace kvatlas::gpu

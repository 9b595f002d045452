// Shapes of the kernels that keep a cache's statistics, bounds and merged rows up to date, as kernels/shapes.hpp lists those of the
// others: what the executor runs, nvcc compiles and the static table lists.
#pragma once

#include "gpu/kernels/accumulated_scores.hpp"
#include "gpu/kernels/page_bounds.hpp"
#include "gpu/kernels/prefix_merge.hpp"
#include "gpu/kernels/weighted_merge.hpp"

namespace kvatlas::gpu {

/// Mass alone (H2O), mass with the number of queries (WeightedKV).
inline constexpr AccumulateShape kAccumulateShapes[] = {{1, false}, {4, false}, {8, false}, {4, true}};

inline constexpr PageBoundsShape kPageBoundsShapes[] = {{128, Dtype::bf16}, {64, Dtype::f16}, {256, Dtype::bf16}};

inline constexpr PrefixMergeShape kPrefixMergeShapes[] = {{128, Dtype::bf16}, {64, Dtype::f16}, {256, Dtype::bf16}};

inline constexpr WeightedMergeShape kWeightedMergeShapes[] = {{128, Dtype::bf16}, {64, Dtype::f16}, {256, Dtype::bf16}};

}  // namespace kvatlas::gpu

// Launchers of the kernels of gpu/kernels/update_shapes.hpp, as gpu/launch/launch.hpp has them for the others.
#pragma once

#include "gpu/simt/device_context.hpp"

#include "gpu/kernels/accumulated_scores.hpp"
#include "gpu/kernels/page_bounds.hpp"
#include "gpu/kernels/prefix_merge.hpp"
#include "gpu/kernels/weighted_merge.hpp"

namespace kvatlas::gpu {

/// Adds the weights of new queries to the mass of `heads` kv heads with kAccumulateShapes[shape].
/// throws   InvalidArgument for arguments that the kernel does not take, DeviceError when the launch fails
void launch_accumulated_scores(int shape, const AccumulateArgs<DeviceCtx>& args, std::int64_t heads, void* stream);

/// Bounds of the pages from args.first on, of `heads` kv heads, with kPageBoundsShapes[shape]. The table lies on the device and is
/// not looked at.
void launch_page_bounds(int shape, const PageBoundsArgs<DeviceCtx>& args, std::int64_t heads, void* stream);

/// Merges the parts of `sequences` sequences with kPrefixMergeShapes[shape]. Where parts lie is said on the device and not looked at:
/// kernels::PrefixMergeLaunch checks it on the host.
void launch_prefix_merge(int shape, const PrefixMergeArgs<DeviceCtx>& args, std::int64_t sequences, void* stream);

/// Merges value rows of `heads` kv heads with kWeightedMergeShapes[shape]. Pairs lie on the device: the kernel traps on tokens that do
/// not exist; that no token stands twice is the caller's part.
void launch_weighted_merge(int shape, const WeightedMergeArgs<DeviceCtx>& args, std::int64_t heads, void* stream);

}  // namespace kvatlas::gpu

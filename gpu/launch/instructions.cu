// Decode kernels whose executed instructions gpu/launch/instructions.py counts: for 16, 8, 4 and 2 bits and groups of 1, 4 and 8 query
// heads, 128 channels, bf16, in both arithmetics. Entry 3 * format + group; nothing launches them.
#include "gpu/simt/device_context.hpp"

#include <iterator>

#include "gpu/kernels/integer_shapes.hpp"

namespace kvatlas::gpu {

namespace {
constexpr int kGroups[] = {1, 4, 8};

constexpr DecodeShape float_cost(int entry) {
  const int group = kGroups[entry % 3];
  return entry < 3 ? shapes::both(shapes::kPlain, 128, group, Dtype::bf16) : shapes::kivi(16 >> entry / 3, CodeLayout::rows, 128, group, Dtype::bf16);
}
inline constexpr DecodeShape kFloatCosts[] = {float_cost(0), float_cost(1), float_cost(2), float_cost(3), float_cost(4), float_cost(5),
                                              float_cost(6), float_cost(7), float_cost(8), float_cost(9), float_cost(10), float_cost(11)};
inline constexpr IntegerShape kIntegerCosts[] = {{float_cost(3), 64}, {float_cost(4), 64}, {float_cost(5), 64},  {float_cost(6), 64}, {float_cost(7), 64},
                                                 {float_cost(8), 64}, {float_cost(9), 64}, {float_cost(10), 64}, {float_cost(11), 64}};
}  // namespace

template <int I>
__global__ void __launch_bounds__(kFloatCosts[I].threads(), 1) float_cost_kernel(DecodeArgs<DeviceCtx> a) {
  DeviceCtx c;
  decode_attention<kFloatCosts[I]>(c, a);
}
/// Entries from 3 on: 16-bit rows have no integer mode.
template <int I>
__global__ void __launch_bounds__(kIntegerCosts[I - 3].threads(), 1) integer_cost_kernel(DecodeArgs<DeviceCtx> a) {
  DeviceCtx c;
  integer_decode<kIntegerCosts[I - 3]>(c, a);
}

#define KV_COST(I) template __global__ void float_cost_kernel<I>(DecodeArgs<DeviceCtx>);
#define KV_BOTH(I) KV_COST(I) template __global__ void integer_cost_kernel<I>(DecodeArgs<DeviceCtx>);
KV_COST(0) KV_COST(1) KV_COST(2)
KV_BOTH(3) KV_BOTH(4) KV_BOTH(5) KV_BOTH(6) KV_BOTH(7) KV_BOTH(8) KV_BOTH(9) KV_BOTH(10) KV_BOTH(11)

}  // namespace kvatlas::gpu

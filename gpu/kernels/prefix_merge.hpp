// prefix_merge: one output row from the partial results of a sequence's parts, from the root of a tree of shared prefixes down to the
// sequence's own tokens (Hydragen). The spans of a part merge left to right, then the parts do, which is not the order of one
// split over the whole context. A block serves one row, a thread one channel.
#pragma once

#include "core/kernels/merge_traffic.hpp"
#include "gpu/kernels/coding.hpp"

namespace kvatlas::gpu {

using kernels::PrefixPart;

struct PrefixMergeShape {
  int dim;
  Dtype dtype;
};

template <class C>
struct PrefixMergeArgs {
  template <class T>
  using Global = typename C::template Global<T>;
  Global<const PrefixPart> parts;       // [sequences][levels], root first; parts that several sequences share lie once
  Global<const float> partial;          // [entries][dim], not normalised, as decode_attention leaves them
  Global<const Vec<float, 2>> state;    // [entries]: maximum, sum
  Global<std::uint16_t> out;            // [sequences][rows][dim]
  std::int64_t rows = 0;                // query rows of a sequence
  int levels = 1;
};

namespace prefix {

/// Maximum, sum and one channel of the output of what was merged so far.
struct Part {
  float max = 0.0F, sum = 0.0F, acc = 0.0F;
};

KV_KERNEL inline void merge_into(Part& left, const Part& right) {
  const float joint = num::max(left.max, right.max);
  const float a = num::exp2(left.max - joint), b = num::exp2(right.max - joint);
  left.sum = num::fma(right.sum, b, left.sum * a);
  left.acc = num::fma(right.acc, b, left.acc * a);
  left.max = joint;
}

}  // namespace prefix

/// grid (rows, sequences), `dim` threads, no shared memory.
template <PrefixMergeShape S, class C>
KV_KERNEL void prefix_merge(C& c, const PrefixMergeArgs<C>& a) {
  const std::int64_t sequence = c.block_y(), row = c.block_x();
  prefix::Part all;
  bool first = true;
  for (int level = 0; level < a.levels; ++level) {
    const PrefixPart part = c.ld_nc(a.parts, sequence * a.levels + level);
    prefix::Part of_level;
    for (int s = 0; s < part.spans; ++s) {
      const std::int64_t entry = part.first + row * part.stride + s;
      const Vec<float, 2> state = c.ld_nc(a.state, entry);
      const prefix::Part span{state.v[0], state.v[1], c.ld_nc(a.partial, entry * S.dim + c.thread())};
      if (s == 0) of_level = span;
      else prefix::merge_into(of_level, span);
    }
    if (part.spans == 0) continue;
    if (first) all = of_level;
    else prefix::merge_into(all, of_level);
    first = false;
  }
  c.st(a.out, (sequence * a.rows + row) * S.dim + c.thread(), store16<C, S.dtype>(all.sum == 0.0F ? 0.0F : all.acc / all.sum));
}

}  // namespace kvatlas::gpu

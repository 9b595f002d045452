// Faces that every method of two sides coded apart builds in one way from its side_layout and its store.
#pragma once

#include "reference/primitives/plans.hpp"
#include "reference/primitives/side_cache.hpp"
#include "reference/primitives/sides.hpp"

namespace kvatlas {

/// A method's side_layout as the plans ask for it.
template <class P, auto layout>
SideLayoutOf layout_with(const P& p, Dtype dtype) {
  return [&p, dtype](const LayerClass& c, Side side, Tokens context) { return layout(p, c, side, dtype, context); };
}

template <class P, auto layout>
Plan side_decode(const P& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  return side_decode_plan(shape, h, layout_with<P, layout>(p, shape.dtype));
}
template <class P, auto layout>
Plan side_prefill(const P& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  return side_prefill_plan(shape, h, layout_with<P, layout>(p, shape.dtype));
}

/// A format of `bits_per_row` bits a row of `dim` values, whole bits as codes and the rest as metadata of the row.
inline CodeFormat spread_format(CodeKind kind, GroupAxis axis, int dim, double bits_per_row) {
  const int bits = static_cast<int>(bits_per_row / dim);
  return {.kind = kind, .bits = bits, .axis = axis, .group_size = dim, .group_bits = static_cast<int>(bits_per_row) - bits * dim};
}

/// Calls body(class, side, width of all heads of all layers and sequences) for both sides of every class of key-value rows.
template <class F>
void for_sides(const CacheShape& shape, const History& h, const F& body) {
  for (const LayerClass& c : shape.classes)
    if (c.kind == RowKind::kv)
      for (const Side side : {Side::key, Side::value})
        body(c, side, std::int64_t{c.count()} * c.kv_heads * h.sequences * dim_of(c, side));
}

/// The bytes of a dense prompt, which a method holds that codes when the prompt ends.
inline Bytes dense_prompt(const CacheShape& shape, const History& h) {
  return dense_ledger(shape, {.prompt = h.prompt, .sequences = h.sequences}).total();
}

}  // namespace kvatlas

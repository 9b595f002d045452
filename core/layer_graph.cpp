#include "core/layer_graph.hpp"

#include <algorithm>
#include <set>

#include "core/errors.hpp"

namespace kvatlas {

int CacheShape::layers() const {
  int n = 0;
  for (const LayerClass& c : classes) n += c.count();
  return n;
}

const LayerClass& CacheShape::class_of(int layer) const {
  for (const LayerClass& c : classes)
    if (std::binary_search(c.layers.begin(), c.layers.end(), layer)) return c;
  throw InvalidArgument(cat("layer is ", layer, ", must be one of the ", layers(), " layers that cache rows"));
}

CacheShape uniform_shape(int layers, int q_heads, int kv_heads, int head_dim, Dtype dtype, RopeSpec rope) {
  LayerClass c{.q_heads = q_heads, .kv_heads = kv_heads, .k_dim = head_dim, .v_dim = head_dim, .rope = rope};
  for (int l = 0; l < layers; ++l) c.layers.push_back(l);
  return {.classes = {c}, .dtype = dtype};
}

std::optional<std::string> why_not(const CacheShape& shape) {
  if (shape.layers() == 0) return "shape has no layer that caches rows";
  std::set<int> seen;
  for (const LayerClass& c : shape.classes) {
    for (const int l : c.layers)
      if (!seen.insert(l).second) return cat("layer ", l, " is in two classes");
    if (c.kind == RowKind::none || c.kind == RowKind::state) continue;
    if (c.q_heads <= 0 || c.kv_heads <= 0 || c.k_dim <= 0 || c.v_dim <= 0)
      return cat("q_heads, kv_heads, k_dim, v_dim are ", c.q_heads, ", ", c.kv_heads, ", ", c.k_dim, ", ", c.v_dim,
                 ", must be positive");
    if (c.q_heads % c.kv_heads != 0)
      return cat("q_heads is ", c.q_heads, ", must be a multiple of kv_heads (", c.kv_heads, ")");
    if (c.rope.rotary_dim % 2 != 0 || c.rope.rotary_dim < 0 || c.rope.first_channel + c.rope.rotary_dim > c.k_dim)
      return cat("rotary_dim is ", c.rope.rotary_dim, ", must be even and at most k_dim (", c.k_dim, ")");
  }
  return std::nullopt;
}

CacheShape shape_of_rank(const CacheShape& shape, int ranks) {
  CacheShape out = shape;
  for (LayerClass& c : out.classes) {
    c.q_heads = std::max(1, c.q_heads / ranks);
    if (c.kind == RowKind::latent) continue;
    c.kv_heads = std::max(1, c.kv_heads / ranks);
    c.state = Bytes(ceil_div(c.state.value, ranks));
  }
  return out;
}

CacheShape shape_of_layers(const CacheShape& shape, const std::vector<int>& keep) {
  CacheShape out{.classes = {}, .dtype = shape.dtype};
  for (const LayerClass& c : shape.classes) {
    LayerClass part = c;
    part.layers.clear();
    // A class cut in two keeps its readers once: with its first owner.
    if (c.layers.empty() || std::find(keep.begin(), keep.end(), c.layers.front()) == keep.end()) part.readers.clear();
    std::copy_if(c.layers.begin(), c.layers.end(), std::back_inserter(part.layers),
                 [&](int l) { return std::find(keep.begin(), keep.end(), l) != keep.end(); });
    if (!part.layers.empty()) out.classes.push_back(std::move(part));
  }
  return out;
}

Bytes dense_bytes(const CacheShape& shape, Tokens context) {
  Bytes total{0};
  for (const LayerClass& c : shape.classes) {
    const std::int64_t rows = ceil_div(c.visible(context).value, c.pool);
    total += Bytes(rows * c.values_per_token() * bytes_of(shape.dtype) * c.count());
    total += Bytes(static_cast<std::int64_t>(c.index_bytes * static_cast<double>(context.value)) * c.count());
    total += c.state * c.count();
  }
  return total;
}

}  // namespace kvatlas

#include "models/model.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "core/errors.hpp"

namespace kvatlas::models {

namespace {

using Rows = std::function<std::int64_t(const LayerClass&)>;

// Bytes of one more token: windowed classes recycle a row, pooled ones open one every `pool` tokens.
Bytes growth(const Model& model, const Rows& row_bytes) {
  std::int64_t total = 0;
  for (const LayerClass& c : model.cache.classes) {
    if (c.kind == RowKind::state || c.kind == RowKind::none) continue;
    if (c.window.value == 0) total += c.count() * row_bytes(c) / c.pool;
    total += c.count() * static_cast<std::int64_t>(c.index_bytes);
  }
  return Bytes(total);
}

std::int64_t fp8_latent_row(const LayerClass& c) {
  const std::int64_t scales = ceil_div(c.v_dim, 128);
  return c.v_dim + 4 * scales + 2 * (c.k_dim - c.v_dim);
}

template <class MatrixValues>
std::int64_t sum(const Model& model, const MatrixValues& values) {
  std::int64_t total = 0;
  for (const MatMul& m : model.ends) total += values(m);
  for (const VectorWeights& v : model.end_vectors) total += v.size;
  for (const LayerGroup& g : model.groups) {
    std::int64_t layer = 0;
    for (const MatMul& m : g.matrices) layer += values(m);
    for (const VectorWeights& v : g.vectors) layer += v.size;
    total += layer * g.count();
  }
  return total;
}

}  // namespace

std::string_view name_of(Role role) {
  switch (role) {
    case Role::attention:
      return "attention";
    case Role::ffn:
      return "ffn";
    case Role::expert:
      return "expert";
    case Role::shared_expert:
      return "shared_expert";
    case Role::router:
      return "router";
    case Role::embedding:
      return "embedding";
    case Role::lm_head:
      return "lm_head";
    case Role::state:
      return "state";
  }
  KV_ASSERT(false, "a role has a name");
  return {};
}

int layers(const Model& model) {
  int n = 0;
  for (const LayerGroup& g : model.groups) n += g.count();
  return n;
}

std::int64_t parameters(const Model& model) {
  return sum(model, [](const MatMul& m) { return m.values(); });
}

std::int64_t active_parameters(const Model& model) {
  return sum(model, [](const MatMul& m) { return m.active_values(); });
}

Bytes kv_bytes_per_token(const Model& model) {
  const std::int64_t width = bytes_of(model.cache.dtype);
  return growth(model, [width](const LayerClass& c) { return c.values_per_token() * width; });
}

bool has_latent_rows(const Model& model) {
  const auto& classes = model.cache.classes;
  return std::any_of(classes.begin(), classes.end(), [](const LayerClass& c) { return c.kind == RowKind::latent; });
}

Bytes kv_bytes_per_token_fp8_latent(const Model& model) {
  if (!has_latent_rows(model))
    throw Unsupported(cat("model is ", model.slug, ", must keep latent rows (MLA) for the fp8 latent layout"));
  const std::int64_t width = bytes_of(model.cache.dtype);
  return growth(model, [width](const LayerClass& c) {
    return c.kind == RowKind::latent ? fp8_latent_row(c) : c.values_per_token() * width;
  });
}

Bytes fixed_cache_bytes(const Model& model) {
  Bytes total{0};
  for (const LayerClass& c : model.cache.classes) {
    total += c.state * c.count();
    total += Bytes(ceil_div(c.window.value, c.pool) * c.values_per_token() * bytes_of(model.cache.dtype) * c.count());
  }
  return total;
}

Bytes weight_bytes(const Model& model, const WeightBits& bits) {
  std::array<std::int64_t, kRoles> values{};
  std::int64_t vectors = 0;
  for (const MatMul& m : model.ends) values[static_cast<std::size_t>(m.role)] += m.values();
  for (const VectorWeights& v : model.end_vectors) vectors += v.size;
  for (const LayerGroup& g : model.groups) {
    for (const MatMul& m : g.matrices) values[static_cast<std::size_t>(m.role)] += m.values() * g.count();
    for (const VectorWeights& v : g.vectors) vectors += v.size * g.count();
  }
  double total = std::ceil(static_cast<double>(vectors) * bits.vectors / 8.0);
  for (std::size_t r = 0; r < kRoles; ++r) total += std::ceil(static_cast<double>(values[r]) * bits.role[r] / 8.0);
  return Bytes(static_cast<std::int64_t>(total));
}

}  // namespace kvatlas::models

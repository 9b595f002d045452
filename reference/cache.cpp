#include "reference/cache.hpp"

#include <cmath>

#include "core/errors.hpp"

namespace kvatlas {

const char* name_of(EventKind kind) {
  return kind == EventKind::prompt_length ? "prompt_length" : kind == EventKind::span_over ? "span_over" : "turn";
}

std::optional<std::int64_t> KvCache::notify(const CacheEvent& event) { throw Unsupported(cat(name_of(event.kind), ": this method has no rule for such an event")); }

void KvCache::crop(Tokens length) { check_crop(length); }

void KvCache::check_crop(Tokens) const { throw Unsupported("crop: this method cannot take tokens back"); }

Ledger count_ledger(std::span<const NamedBuffer> buffers) {
  Ledger ledger;
  for (const NamedBuffer& b : buffers)
    ledger.add(b.component, b.side, b.scope, Bytes(static_cast<std::int64_t>(b.bytes.size())));
  return ledger;
}

namespace {

void check_dims(const char* name, const View<const float>& view, std::int64_t heads, std::int64_t n, std::int64_t dim) {
  if (view.rank() != 3 || view.dim(0) != heads || view.dim(1) != n || view.dim(2) != dim) {
    std::string dims;
    for (int i = 0; i < view.rank(); ++i) dims += cat(i > 0 ? ", " : "", view.dim(i));
    throw InvalidArgument(cat(name, " is [", dims, "], must be [", heads, ", ", n, ", ", dim, "]"));
  }
}

void check_finite(const char* name, const View<const float>& view) {
  for (std::int64_t h = 0; h < view.dim(0); ++h)
    for (std::int64_t i = 0; i < view.dim(1); ++i) {
      const auto row = view.row(h, i);
      for (std::size_t c = 0; c < row.size(); ++c)
        if (!std::isfinite(row[c]))
          throw InvalidArgument(cat(name, "[", h, ", ", i, ", ", c, "] is ", row[c], ", must be finite"));
    }
}

}  // namespace

void check_step(const CacheShape& shape, int layer, const StepInput& step, const View<float>& out) {
  const LayerClass& c = shape.class_of(layer);
  if (c.kind != RowKind::kv && c.kind != RowKind::latent)
    throw Unsupported(cat("layer ", layer, " keeps no key-value rows; references cover kv and latent layers"));
  if (step.positions.rank() != 1 || step.positions.size() < 1)
    throw InvalidArgument("positions is empty, must hold one position for each new token");
  const std::int64_t n = step.positions.size();
  check_dims("q", step.q, c.q_heads, n, c.k_dim);
  check_dims("k", step.k, c.kv_heads, n, c.k_dim);
  if (c.kind == RowKind::kv) check_dims("v", step.v, c.kv_heads, n, c.v_dim);
  check_dims("out", out, c.q_heads, n, c.v_dim);
  check_finite("q", step.q);
  check_finite("k", step.k);
  if (c.kind == RowKind::kv) check_finite("v", step.v);
  for (std::int64_t i = 0; i < n; ++i) {
    if (step.positions(i) < 0) throw InvalidArgument(cat("positions[", i, "] is ", step.positions(i), ", must be >= 0"));
    if (i > 0 && step.mask.kind != MaskKind::tree && step.positions(i) <= step.positions(i - 1))
      throw InvalidArgument(cat("positions[", i, "] is ", step.positions(i), ", must be above positions[", i - 1, "] (",
                                step.positions(i - 1), ")"));
  }
  if (step.mask.kind == MaskKind::tree) {
    if (step.mask.tree.rank() != 2 || step.mask.tree.dim(0) != n || step.mask.tree.dim(1) != n)
      throw InvalidArgument(cat("mask.tree must be [", n, ", ", n, "]"));
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < n; ++j)
        if ((step.mask.tree(i, j) != 0 && j > i) || (i == j && step.mask.tree(i, j) == 0))
          throw InvalidArgument(cat("mask.tree[", i, ", ", j, "] breaks the order: a token sees itself and earlier ones"));
  }
}

const NamedBuffer& find_buffer(std::span<const NamedBuffer> saved, std::string_view name) {
  for (const NamedBuffer& b : saved)
    if (b.name == name) return b;
  throw InvalidArgument(cat("saved cache has no buffer \"", name, "\""));
}

}  // namespace kvatlas

#include "models/runtime/attention.hpp"

#include <algorithm>
#include <map>
#include <span>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/parallel.hpp"
#include "reference/primitives/attention.hpp"
#include "reference/primitives/step.hpp"

namespace kvatlas::models {

namespace {

constexpr Tokens kCachedPositions{4096};

std::span<const std::int64_t> span_of(const View<const std::int64_t>& positions) {
  return {positions.data(), static_cast<std::size_t>(positions.size())};
}

Array copy_of(const View<const float>& from) {
  Array to({from.dim(0), from.dim(1), from.dim(2)});
  for (std::int64_t h = 0; h < from.dim(0); ++h)
    for (std::int64_t i = 0; i < from.dim(1); ++i) std::ranges::copy(from.row(h, i), to.view().row(h, i).begin());
  return to;
}

/// First row that a query which sees `end` rows reads.
std::int64_t first_seen(const LayerClass& c, std::int64_t end) {
  return c.window.value > 0 ? std::max<std::int64_t>(0, end - c.window.value) : 0;
}

constexpr std::int64_t kQueriesOfATask = 16;

}  // namespace

struct PlainAttention::Impl {
  struct Layer {
    std::vector<std::vector<float>> k, v;  // by kv head: rows
    std::int64_t rows = 0;
  };
  CacheShape shape;
  std::vector<RopeTable> tables;  // by class
  std::map<int, Layer> layers;

  std::size_t class_index(int layer) const { return static_cast<std::size_t>(&shape.class_of(layer) - shape.classes.data()); }

  /// Rounded to the dtype, rotated, rounded again: what prepare_step does.
  Array prepared(const View<const float>& from, const RopeTable& table, const View<const std::int64_t>& positions) const {
    Array to = copy_of(from);
    round_all(shape.dtype, to.values());
    if (table.spec().rotary_dim > 0) {
      table.apply(to.view(), span_of(positions));
      round_all(shape.dtype, to.values());
    }
    return to;
  }
};

PlainAttention::PlainAttention(CacheShape shape) : impl_(std::make_unique<Impl>()) {
  impl_->shape = std::move(shape);
  for (const LayerClass& c : impl_->shape.classes) {
    impl_->tables.emplace_back(c.rope, kCachedPositions);
    for (const int l : c.layers) {
      Impl::Layer& layer = impl_->layers[l];
      layer.k.resize(static_cast<std::size_t>(c.kv_heads));
      layer.v.resize(static_cast<std::size_t>(c.kv_heads));
    }
  }
}

PlainAttention::~PlainAttention() = default;

void PlainAttention::forward(int index, const StepInput& step, View<float> out) {
  check_step(impl_->shape, index, step, out);
  if (step.mask.kind != MaskKind::causal) throw Unsupported("mask is not causal, must be causal on the plain path");
  const LayerClass& c = impl_->shape.class_of(index);
  const RopeTable& table = impl_->tables[impl_->class_index(index)];
  Impl::Layer& layer = impl_->layers.at(index);
  const std::int64_t n = step.positions.size(), old = layer.rows;
  const Array q = impl_->prepared(step.q, table, step.positions);
  const Array k = impl_->prepared(step.k, table, step.positions);
  Array v = copy_of(step.v);
  round_all(impl_->shape.dtype, v.values());
  for (int h = 0; h < c.kv_heads; ++h) {
    const auto at = static_cast<std::size_t>(h);
    const auto append = [&](std::vector<float>& rows, const Array& a) {
      const float* from = a.view()[h].data();
      rows.insert(rows.end(), from, from + n * a.dims()[2]);
    };
    append(layer.k[at], k);
    append(layer.v[at], v);
  }
  layer.rows += n;

  const float scale = logit_scale(c);
  const std::int64_t blocks = ceil_div(n, kQueriesOfATask);
  // Later queries read more: tasks run from the last one, so that no thread is left with a long one at the end.
  parallel_for(blocks * c.q_heads, [&](std::int64_t task) {
    const std::int64_t block = blocks - 1 - task / c.q_heads, head = task % c.q_heads;
    const auto kv = static_cast<std::size_t>(head / c.q_per_kv());
    std::vector<float> x;
    for (std::int64_t i = block * kQueriesOfATask; i < std::min(n, (block + 1) * kQueriesOfATask); ++i) {
      const std::int64_t end = old + i + 1, first = first_seen(c, end);
      x.resize(static_cast<std::size_t>(end - first));
      logits(q.view().row(head, i), View<const float>(layer.k[kv].data(), {layer.rows, c.k_dim}).slice(0, first, end - first), scale, x);
      finish(softmax_part(x, View<const float>(layer.v[kv].data(), {layer.rows, c.v_dim}).slice(0, first, end - first)), out.row(head, i));
    }
  });
}

ObservedAttention::ObservedAttention(const CacheShape& shape, Attention& inside, Observer observer)
    : shape_(shape), inside_(inside), observer_(std::move(observer)) {
  for (const LayerClass& c : shape_.classes) tables_.emplace_back(c.rope, kCachedPositions);
}

void ObservedAttention::forward(int layer, const StepInput& step, View<float> out) {
  inside_.forward(layer, step, out);
  const LayerClass& c = shape_.class_of(layer);
  Array q = copy_of(step.q), k = copy_of(step.k);
  if (c.rope.rotary_dim > 0) {
    const RopeTable& table = tables_[static_cast<std::size_t>(&c - shape_.classes.data())];
    table.apply(q.view(), span_of(step.positions));
    table.apply(k.view(), span_of(step.positions));
  }
  observer_({.layer = layer, .positions = step.positions, .q_before = step.q, .k_before = step.k, .q = q.view(), .k = k.view(),
             .v = step.v, .out = out});
}

Array attention_mass(const LayerClass& c, View<const float> q, View<const float> k, std::int64_t queries) {
  const std::int64_t n = q.dim(1), from = std::max<std::int64_t>(0, n - queries);
  Array mass({c.q_heads, n});
  const float scale = logit_scale(c);
  parallel_for(c.q_heads, [&](std::int64_t head) {
    const View<const float> keys = k[head / c.q_per_kv()];
    const View<const float> nothing(keys.data(), {n, 0});  // only the maximum and the sum of the softmax are wanted
    std::vector<std::uint64_t> total(static_cast<std::size_t>(n));
    std::vector<float> x, p;
    for (std::int64_t i = from; i < n; ++i) {
      const std::int64_t end = i + 1, first = first_seen(c, end);
      x.resize(static_cast<std::size_t>(end - first));
      p.resize(x.size());
      logits(q.row(head, i), keys.slice(0, first, end - first), scale, x);
      softmax_weights(x, softmax_part(x, nothing.slice(0, first, end - first)), p);
      for (std::size_t t = 0; t < p.size(); ++t) total[static_cast<std::size_t>(first) + t] += num::to_mass(p[t]);
    }
    for (std::int64_t t = 0; t < n; ++t) mass.view()(head, t) = num::from_mass(total[static_cast<std::size_t>(t)]);
  });
  return mass;
}

}  // namespace kvatlas::models

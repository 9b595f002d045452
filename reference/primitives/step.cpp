#include "reference/primitives/step.hpp"

#include <algorithm>

#include "core/formats/dtype.hpp"
#include "reference/primitives/attention.hpp"

namespace kvatlas {

Rotary::Rotary(const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    for (const int l : c.layers) of_layer_[l] = tables_.size();
    tables_.emplace_back(c.rope);
  }
}

void round_all(Dtype dtype, std::span<float> values) {
  if (dtype != Dtype::f32) num::round_to(dtype, values);
}

namespace {

Array copy_rounded(const View<const float>& from, Dtype dtype) {
  Array to({from.dim(0), from.dim(1), from.dim(2)});
  for (std::int64_t h = 0; h < from.dim(0); ++h)
    for (std::int64_t i = 0; i < from.dim(1); ++i) std::ranges::copy(from.row(h, i), to.view().row(h, i).begin());
  round_all(dtype, to.values());
  return to;
}

}  // namespace

PreparedStep prepare_step(const CacheShape& shape, const Rotary& rotary, int layer, const StepInput& step,
                          const View<float>& out) {
  check_step(shape, layer, step, out);
  const LayerClass& c = shape.class_of(layer);
  PreparedStep p;
  p.n = step.positions.size();
  p.q_pre = copy_rounded(step.q, shape.dtype);
  p.k_pre = copy_rounded(step.k, shape.dtype);
  p.q = p.q_pre;
  p.k = p.k_pre;
  if (c.rope.rotary_dim > 0) {
    const std::span<const std::int64_t> positions{step.positions.data(), static_cast<std::size_t>(p.n)};
    rotary.of(layer).apply(p.q.view(), positions);
    rotary.of(layer).apply(p.k.view(), positions);
    round_all(shape.dtype, p.q.values());
    round_all(shape.dtype, p.k.values());
  }
  if (c.kind == RowKind::latent) {
    p.v = Array({c.kv_heads, p.n, c.v_dim});
    for (int h = 0; h < c.kv_heads; ++h)
      for (std::int64_t i = 0; i < p.n; ++i) std::ranges::copy(p.k.view().row(h, i).first(static_cast<std::size_t>(c.v_dim)), p.v.view().row(h, i).begin());
  } else {
    p.v = copy_rounded(step.v, shape.dtype);
  }
  return p;
}

void attend_new(const LayerClass& c, int kv_head, View<const float> q, View<const float> k, View<const float> v,
                const AttentionMask& mask, View<const float> sinks, View<float> out, const WeightSink& weights) {
  const std::int64_t rows = k.dim(0), n = q.dim(1), old = rows - n;
  const float scale = logit_scale(c);
  std::vector<float> x, p;
  Array v_seen;  // rows that a tree or window leaves, where they are not contiguous
  for (int g = 0; g < c.q_per_kv(); ++g) {
    const int head = kv_head * c.q_per_kv() + g;
    for (std::int64_t i = 0; i < n; ++i) {
      const bool gaps = mask.kind == MaskKind::tree;
      const std::int64_t end = mask.kind == MaskKind::bidirectional ? rows : old + i + 1;
      const std::int64_t first = c.window.value > 0 ? std::max<std::int64_t>(0, end - c.window.value) : 0;
      x.resize(static_cast<std::size_t>(end - first));
      logits(q.row(head, i), k.slice(0, first, end - first), scale, x);
      SoftmaxPart part;
      if (!gaps) {
        part = softmax_part(x, v.slice(0, first, end - first));
      } else {
        // Hidden rows drop out of the list, so that the split depends on the entries that are seen.
        std::vector<float> x_seen;
        v_seen = Array({end - first, v.dim(1)});
        std::int64_t kept = 0;
        for (std::int64_t t = first; t < end; ++t)
          if (t < old || mask.sees(i, t - old)) {
            x_seen.push_back(x[static_cast<std::size_t>(t - first)]);
            std::ranges::copy(v.row(t), v_seen.view().row(kept++).begin());
          }
        part = softmax_part(x_seen, View<const float>(v_seen.view()).slice(0, 0, kept));
      }
      if (c.attention_sink && !sinks.empty()) add_sink(part, sinks(head) * 1.44269504F);
      finish(part, out.row(head, i));
      if (weights) {
        p.resize(x.size());
        softmax_weights(x, part, p);
        if (gaps)
          for (std::int64_t t = std::max(first, old); t < end; ++t)
            if (!mask.sees(i, t - old)) p[static_cast<std::size_t>(t - first)] = 0;
        weights(head, i, first, p);
      }
    }
  }
}

}  // namespace kvatlas

#include "reference/primitives/sparse_attention.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/errors.hpp"
#include "reference/primitives/attention.hpp"

namespace kvatlas {

Slots seen_rows(const AttentionMask& mask, std::int64_t old, std::int64_t n, std::int64_t query) {
  Slots rows(static_cast<std::size_t>(old));
  std::iota(rows.begin(), rows.end(), std::int64_t{0});
  for (std::int64_t t = 0; t < n; ++t)
    if (mask.sees(query, t)) rows.push_back(old + t);
  return rows;
}

Array gather_rows(View<const float> from, std::span<const std::int64_t> rows) {
  Array out({static_cast<std::int64_t>(rows.size()), from.dim(1)});
  for (std::size_t i = 0; i < rows.size(); ++i)
    std::ranges::copy(from.row(rows[i]), out.view().row(static_cast<std::int64_t>(i)).begin());
  return out;
}

void attend_gathered(const LayerClass& c, std::span<const float> q, View<const float> k, View<const float> v,
                     std::optional<float> sink, std::span<float> out) {
  std::vector<float> x(static_cast<std::size_t>(k.dim(0)));
  logits(q, k, logit_scale(c), x);
  SoftmaxPart part = softmax_part(x, v);
  if (sink) add_sink(part, *sink * 1.44269504F);  // log2(e): logits are in base-2 units
  finish(part, out);
}

void attend_listed(const LayerClass& c, std::span<const float> q, View<const float> k, View<const float> v,
                   std::span<const std::int64_t> rows, std::optional<float> sink, std::span<float> out) {
  const Array k_listed = gather_rows(k, rows), v_listed = gather_rows(v, rows);
  attend_gathered(c, q, k_listed.view(), v_listed.view(), sink, out);
}

std::optional<float> sink_of(const LayerClass& c, const StepInput& step, int q_head) {
  if (!c.attention_sink || step.sinks.empty()) return std::nullopt;
  return step.sinks(q_head);
}

Tokens expected_union(Tokens listed, Tokens context, int q_per_kv) {
  if (listed >= context || context.value <= 0) return std::min(listed, context);
  const double missed = 1.0 - static_cast<double>(listed.value) / static_cast<double>(context.value);
  double missed_by_all = 1.0;
  for (int g = 0; g < q_per_kv; ++g) missed_by_all *= missed;
  const auto rows = static_cast<std::int64_t>(std::ceil(static_cast<double>(context.value) * (1.0 - missed_by_all)));
  return std::clamp(Tokens(rows), listed, std::min(context, listed * q_per_kv));
}

int layers_below(const LayerClass& c, int first) {
  return static_cast<int>(std::ranges::count_if(c.layers, [&](int l) { return l < first; }));
}

LayerClass layers_from(LayerClass c, int first) {
  std::erase_if(c.layers, [&](int l) { return l < first; });
  std::erase_if(c.readers, [&](int l) { return l < first; });
  return c;
}

std::optional<std::string> why_not_listed(const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    if (c.window.value > 0) return cat("a sliding window of ", c.window.value, " tokens leaves nothing to select from; use full for such layers");
    if (c.kind == RowKind::latent || c.kind == RowKind::pooled)
      return "layers must cache keys and values for each kv head; latent and pooled rows are not covered";
    if (c.index_top_k > 0) return "layers with a learned index select tokens themselves";
    if (c.alibi) return "layers with a linear position bias are not covered";
  }
  return std::nullopt;
}

}  // namespace kvatlas

#include "reference/primitives/token_cache.hpp"

#include <algorithm>

#include "core/errors.hpp"
#include "core/parallel.hpp"

namespace kvatlas {

CacheShape stored_shape(const CacheShape& shape, Granularity granularity) {
  CacheShape stored = shape;
  if (granularity == Granularity::query_head)
    for (LayerClass& c : stored.classes)
      if (c.kind == RowKind::kv) c.kv_heads = c.q_heads;
  return stored;
}

std::optional<std::string> why_not_rows(const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind == RowKind::latent) return "latent rows serve all heads: a choice of tokens by kv head has no meaning there";
    if (c.kind == RowKind::pooled) return "pooled rows stand for several tokens: there is no token to evict";
    if (c.kind == RowKind::kv && c.window.value > 0)
      return cat("window is ", c.window.value, " in layer ", c.layers.front(), ", must be 0: a sliding window evicts by its own rule");
  }
  return std::nullopt;
}

TokenCache::TokenCache(CacheShape shape, Granularity granularity)
    : shape_(std::move(shape)), granularity_(granularity), rotary_(shape_) {
  for (const LayerClass& c : stored_shape(shape_, granularity_).classes)
    for (const int l : c.layers)
      if (c.kind == RowKind::kv)
        layers_.push_back({.index = l, .ordinal = layers_.size(), .c = c,
                           .rows = TokenRows(c.kv_heads, c.k_dim, c.v_dim, shape_.dtype), .seen = 0});
}

namespace {
constexpr const char* kOpenPrompt = "open_prompt";  // behind the prefix of the first layer
}  // namespace

std::size_t TokenCache::find(int layer) const {
  for (const Layer& l : layers_)
    if (l.index == layer) return l.ordinal;
  throw InvalidArgument(cat("layer is ", layer, ", must be a layer that caches rows"));
}

std::string TokenCache::prefix(const Layer& layer) { return cat("layer", layer.index, "/"); }

namespace {

/// [kv_heads, n, dim] with every head repeated `times` times in a row.
Array repeat_heads(const Array& rows, std::int64_t times) {
  Array out({rows.dims()[0] * times, rows.dims()[1], rows.dims()[2]});
  for (std::int64_t h = 0; h < rows.dims()[0] * times; ++h)
    for (std::int64_t i = 0; i < rows.dims()[1]; ++i)
      std::ranges::copy(rows.view().row(h / times, i), out.view().row(h, i).begin());
  return out;
}

}  // namespace

void TokenCache::forward(int layer, const StepInput& step_input, View<float> out) {
  PreparedStep p = prepare_step(shape_, rotary_, layer, step_input, out);
  Layer& l = layers_[find(layer)];
  check(l, step_input);
  if (granularity_ == Granularity::query_head) {
    const std::int64_t times = shape_.class_of(layer).q_per_kv();
    for (Array* rows : {&p.k, &p.k_pre, &p.v}) *rows = repeat_heads(*rows, times);
  }
  step(l, p, step_input, out);
  l.seen = l.seen.value_or(step_input.positions(0)) + p.n;
  if (prompt_done_) l.appended += p.n;
}

void TokenCache::attend(const Layer& layer, const PreparedStep& p, const StepInput& step_input, View<float> out,
                        const WeightSink& weights) const {
  parallel_for(layer.c.kv_heads, [&](std::int64_t h) {
    const int head = static_cast<int>(h);
    const Array k = layer.rows.keys(head), v = layer.rows.values(head);
    attend_new(layer.c, head, p.q.view(), k.view(), v.view(), step_input.mask, step_input.sinks, out, weights);
  });
}

void TokenCache::end_prefill() {
  if (prompt_done_) return;
  for (Layer& l : layers_) after_prompt(l);
  prompt_done_ = true;
}

void TokenCache::check_crop(Tokens length) const {
  if (length.value < 0) throw InvalidArgument(cat("length is ", length.value, ", must be >= 0"));
  for (const Layer& l : layers_) {
    if (!l.seen) throw Unsupported("crop: a loaded cache learns the length of its text from the next step");
    if (*l.seen - length.value > std::max<std::int64_t>(0, restorable(l)))
      throw Unsupported(cat("crop to ", length.value, " of ", *l.seen, " tokens: the method has dropped or changed what would come back"));
  }
}

void TokenCache::crop(Tokens length) {
  check_crop(length);
  for (Layer& l : layers_) {
    const std::int64_t removed = *l.seen - length.value;
    if (removed <= 0) continue;
    for (int h = 0; h < l.rows.heads(); ++h) l.rows.truncate(h, l.rows.count(h) - removed);
    crop_more(l, removed);
    l.seen = length.value;
    l.appended = std::max<std::int64_t>(0, l.appended - removed);
  }
}

std::vector<NamedBuffer> TokenCache::buffers() const {
  std::vector<NamedBuffer> out;
  for (const Layer& l : layers_) {
    l.rows.buffers(prefix(l), out);
    buffers_more(l, out);
  }
  if (!prompt_done_ && !layers_.empty())
    out.push_back({.name = prefix(layers_.front()) + kOpenPrompt, .component = "rows", .side = Side::both, .scope = Scope::sequence, .bytes = {}});
  return out;
}

bool TokenCache::holds_open_prompt(std::span<const NamedBuffer> saved) { 
  return std::ranges::any_of(saved, [](const NamedBuffer& b) { return b.name.ends_with(kOpenPrompt); });
}

void TokenCache::load(std::span<const NamedBuffer> saved) {
  std::vector<Layer> loaded = layers_;
  for (Layer& l : loaded) {
    before_load(l.rows, prefix(l), saved);
    l.rows.load(prefix(l), saved);
    check_loaded(l, saved);
    l.seen.reset();
    l.appended = 0;
  }
  load_more(saved);
  layers_ = std::move(loaded);
  prompt_done_ = !holds_open_prompt(saved) && !prompt_open();
}

void TokenCache::check_loaded(const Layer& l, std::span<const NamedBuffer>) const {
  for (int h = 1; h < l.rows.heads(); ++h)
    if (l.rows.count(h) != l.rows.count(0))
      throw InvalidArgument(cat("buffer ", prefix(l), "k_rows/head", h, " holds ", l.rows.count(h), " tokens, must hold ", l.rows.count(0),
                                " as in every head"));
}

Tokens TokenCache::kept(int layer, int kv_head) const {
  const Layer& l = layers_[find(layer)];
  return Tokens(l.rows.count(kv_head * l.c.kv_heads / shape_.class_of(layer).kv_heads));
}

}  // namespace kvatlas

#include "reference/primitives/selected_prompt.hpp"

#include <algorithm>

#include "core/errors.hpp"
#include "reference/primitives/token_cache.hpp"

namespace kvatlas {

SelectedPrompt::SelectedPrompt(const char* name, ChosenPrompt chosen, std::unique_ptr<KvCache> inner, CacheShape shape)
    : name_(name), chosen_(std::move(chosen)), inner_(std::move(inner)), shape_(std::move(shape)) {}

std::int64_t SelectedPrompt::chosen_before(std::int64_t token) const {
  if (token >= chosen_.prompt) return static_cast<std::int64_t>(chosen_.shown.size()) + token - chosen_.prompt;
  return std::ranges::lower_bound(chosen_.shown, token) - chosen_.shown.begin();
}

void SelectedPrompt::check_order(int layer, const StepInput& step) const {
  const std::int64_t first = step.positions(0), n = step.positions.size();
  const std::int64_t held = inner_->kept(layer, 0).value;
  if (first >= chosen_.prompt) {
    if (!ended_ && held < static_cast<std::int64_t>(chosen_.shown.size()))
      throw InvalidArgument(cat(name_, ": a token at position ", first, " came before the prompt of ", chosen_.prompt, " tokens was complete"));
    return;
  }
  if (step.mask.kind != MaskKind::causal) throw Unsupported(cat(name_, " shows a causal prompt: mask must be causal until it ends"));
  for (std::int64_t i = 0; i < n; ++i)
    if (step.positions(i) != first + i) throw Unsupported(cat(name_, " moves tokens to new positions: those of the prompt must be 0, 1, 2, ..."));
  if (chosen_before(first) != held)
    throw InvalidArgument(cat(name_, ": the token at position ", first, " follows ", chosen_before(first), " chosen ones, the cache holds ", held));
}

void SelectedPrompt::forward(int layer, const StepInput& step, View<float> out) {
  check_step(shape_, layer, step, out);
  check_order(layer, step);
  const LayerClass& c = shape_.class_of(layer);
  std::vector<std::int64_t> which, positions;
  for (std::int64_t i = 0; i < step.positions.size(); ++i) {
    const std::int64_t t = step.positions(i);
    if (t < chosen_.prompt && !std::ranges::binary_search(chosen_.shown, t)) continue;
    which.push_back(i);
    positions.push_back(chosen_before(t));
  }
  const auto n = static_cast<std::int64_t>(which.size());
  const View<const std::int64_t> at{positions.data(), {n}};
  if (n == step.positions.size()) {
    StepInput moved = step;
    moved.positions = at;
    return inner_->forward(layer, moved, out);
  }
  const auto chosen_rows = [&](View<const float> from) {
    Array rows({from.dim(0), n, from.dim(2)});
    for (std::int64_t h = 0; h < from.dim(0); ++h)
      for (std::int64_t i = 0; i < n; ++i) std::ranges::copy(from.row(h, which[static_cast<std::size_t>(i)]), rows.view().row(h, i).begin());
    return rows;
  };
  Array part({c.q_heads, n, c.v_dim});
  if (n > 0) {
    const Array q = chosen_rows(step.q), k = chosen_rows(step.k), v = chosen_rows(step.v);
    inner_->forward(layer, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = at, .sinks = step.sinks}, part.view());
  }
  for (std::int64_t h = 0; h < c.q_heads; ++h) {
    for (std::int64_t i = 0; i < step.positions.size(); ++i) std::ranges::fill(out.row(h, i), 0.0F);
    for (std::int64_t i = 0; i < n; ++i) std::ranges::copy(part.view().row(h, i), out.row(h, which[static_cast<std::size_t>(i)]).begin());
  }
}

void SelectedPrompt::end_prefill() {
  if (ended_) return inner_->end_prefill();
  for (const LayerClass& c : shape_.classes)
    for (const int layer : c.layers)
      if (c.kind == RowKind::kv && inner_->kept(layer, 0).value < static_cast<std::int64_t>(chosen_.shown.size()))
        throw InvalidArgument(cat(name_, ": the prompt has ended in layer ", layer, " before the ", chosen_.prompt, " tokens that the draft has seen"));
  inner_->end_prefill();
  ended_ = true;
}

Tokens SelectedPrompt::inner_length(Tokens length) const {
  if (length.value < chosen_.prompt) throw Unsupported(cat("crop to ", length.value, " of a prompt of ", chosen_.prompt, " tokens: parts of it were never stored"));
  return Tokens(chosen_before(length.value));
}

void SelectedPrompt::check_crop(Tokens length) const { inner_->check_crop(inner_length(length)); }
void SelectedPrompt::crop(Tokens length) { inner_->crop(inner_length(length)); }

void SelectedPrompt::load(std::span<const NamedBuffer> saved) {
  inner_->load(saved);
  ended_ = true;
}

std::optional<std::string> why_not_shown(const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind == RowKind::state) return "a recurrent state sees every token: a part of the prompt cannot be hidden from it";
    if (c.alibi) return "alibi is true: distances of a linear bias would change with the tokens that are left out";
  }
  return why_not_rows(shape);
}

History shown_history(const History& h, Tokens budget, Tokens behind) {
  History shown = h;
  shown.prompt = std::min(budget, h.prompt - behind) + behind;
  shown.shared_prefix = std::min(h.shared_prefix, shown.prompt);
  shown.chunk = std::min(h.chunk, shown.prompt);
  return shown;
}

}  // namespace kvatlas

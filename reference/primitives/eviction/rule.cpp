#include "reference/primitives/eviction/rule.hpp"

#include <algorithm>
#include <limits>

#include "core/errors.hpp"

namespace kvatlas::eviction {

std::int64_t Rule::quota(const Place& place, std::int64_t rows) const {
  if (rows <= whole.value) return rows;
  const std::int64_t wanted = layer_budget ? layer_budget(place, rows) : budget.value;
  return std::min(rows, std::max(wanted, guarded()));
}

Places places_of(const CacheShape& shape, const LayerClass& c) {
  boost::container::small_vector<int, 80> all;
  for (const LayerClass& other : shape.classes)
    if (other.kind == RowKind::kv) all.insert(all.end(), other.layers.begin(), other.layers.end());
  if (!std::ranges::is_sorted(all)) std::ranges::sort(all);  // layers of one class are in order
  Places places;
  for (const int layer : c.layers)
    places.push_back({.layer = layer, .ordinal = static_cast<int>(std::ranges::lower_bound(all, layer) - all.begin()),
                      .layers = static_cast<int>(all.size())});
  return places;
}

namespace {

/// Rows of which a step leaves at most so many, for rules that go on evicting.
std::int64_t ceiling(const Rule& rule, const Place& place) {
  return rule.quota(place, std::numeric_limits<std::int32_t>::max());
}

/// Rows after the event at the end of the prompt.
std::int64_t after_prompt(const Rule& rule, const Place& place, std::int64_t prompt) {
  if (rule.spares_prompt) return prompt;
  const std::int64_t kept = rule.quota(place, prompt);
  return (rule.trigger == Trigger::overflow && kept < prompt ? kept - rule.room.value : kept) - rule.drafts(prompt);
}

std::int64_t rows_after(const Rule& rule, const Place& place, std::int64_t prompt, std::int64_t generated) {
  const std::int64_t start = after_prompt(rule, place, prompt);
  if (rule.trigger == Trigger::prompt_end || prompt + generated <= rule.whole.value) return start + generated;
  const std::int64_t most = ceiling(rule, place);
  if (rule.trigger == Trigger::overflow) {
    const std::int64_t rows = start + generated;
    return rows <= most ? rows : most - rule.room.value + (rows - most - 1) % (rule.room.value + 1);
  }
  const std::int64_t every = rule.trigger == Trigger::interval ? rule.interval.value : 1;
  const std::int64_t settled = generated / every * every;
  return (settled > 0 ? std::min(start + settled, most) : start) + generated - settled;
}

}  // namespace

std::int64_t kept_rows(const Rule& rule, const Place& place, const History& h) {
  return rows_after(rule, place, h.prompt.value, h.generated.value);
}

std::int64_t attended_rows(const Rule& rule, const Place& place, const History& h) {
  const std::int64_t before = h.generated.value > 0 ? rows_after(rule, place, h.prompt.value, h.generated.value - 1)
                                                    : after_prompt(rule, place, h.prompt.value) - 1;
  return std::max<std::int64_t>(1, before + 1);
}

bool drops_rows(const Rule& rule, const Place& place, const History& h) {
  if (rule.trigger == Trigger::prompt_end || h.tokens() <= rule.whole) return false;
  return attended_rows(rule, place, h) >= ceiling(rule, place);
}

std::int64_t most_rows(const Rule& rule, const Place& place, const History& h) {
  std::int64_t now = kept_rows(rule, place, h);
  if (h.prompt <= rule.whole) now = std::max(now, std::min(h.tokens(), rule.whole).value);
  if (rule.trigger == Trigger::prompt_end || rule.trigger == Trigger::every_step) return now;
  const std::int64_t start = after_prompt(rule, place, h.prompt.value), most = ceiling(rule, place);
  if (rule.trigger == Trigger::overflow) return std::min(start + h.generated.value, most);
  const std::int64_t before = std::max<std::int64_t>(0, std::min(h.generated.value, (h.generated.value / rule.interval.value) * rule.interval.value - 1));
  // A prompt above the quota is only cut by the first event: then the rows before it are the most.
  const std::int64_t first = std::min(h.generated.value, rule.interval.value - 1);
  return std::max({now, rows_after(rule, place, h.prompt.value, before), rows_after(rule, place, h.prompt.value, first)});
}

std::optional<std::string> why_not(const Rule& rule, const CacheShape& shape) {
  if (rule.refusal) return rule.refusal;
  if (rule.budget.value < std::max<std::int64_t>(1, rule.guarded()))
    return cat("budget is ", rule.budget.value, ", must be at least the tokens that always stay (", std::max<std::int64_t>(1, rule.guarded()), ")");
  if (rule.trigger == Trigger::overflow && rule.budget.value - rule.room.value < std::max<std::int64_t>(1, rule.guarded()))
    return cat("budget less the tokens that leave at once is ", rule.budget.value - rule.room.value,
               ", must be at least the tokens that always stay (", std::max<std::int64_t>(1, rule.guarded()), ")");
  KV_ASSERT(!(rule.content_counts && rule.keeps_words() && !rule.words.empty()), "words are counted by the closed form");
  for (const LayerClass& c : shape.classes)
    if (rule.rerotate && c.alibi) return "alibi is true: positions of a linear bias cannot be moved by rotation";
  if (rule.scorer.window.value > 0)
    for (const LayerClass& c : shape.classes)
      if (c.attention_sink) return "learned sink logits: the scores of the window would need them after the prompt";
  return why_not_rows(shape);
}

}  // namespace kvatlas::eviction

// Bytes of an eviction rule from its closed form, or from counts where only the content can tell.
#include <algorithm>

#include "reference/primitives/eviction/rule.hpp"
#include "reference/primitives/plans.hpp"

namespace kvatlas::eviction {

namespace {

/// What a rule holds beside its rows while the prompt runs: queries of the observation window, moments, clocks.
Bytes prompt_extras(const Rule& rule, const LayerClass& stored, Dtype dtype, const History& h) {
  const std::int64_t queries = std::min(rule.scorer.window, h.prompt).value;
  std::int64_t layer = queries * stored.q_heads * stored.k_dim * bytes_of(dtype);
  if (h.prompt.value > 0) layer += QueryMoments::bytes(stored.q_heads, stored.k_dim, rule.scorer.moments);
  if (rule.has_clock()) layer += 4;
  if (rule.allocate) layer += 4;
  return Bytes(layer * stored.count() * h.sequences);
}

}  // namespace

Ledger ledger_formula(const Rule& rule, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  const StoredShape as_stored(shape, rule.granularity);
  const CacheShape& stored = *as_stored;
  Ledger ledger;
  Bytes prefill(0), beyond(0);
  std::int64_t expected_keys = 0, expected_values = 0;
  for (const LayerClass& c : stored.classes) {
    if (c.kind != RowKind::kv) {
      const Ledger dense = dense_ledger({.classes = {c}, .dtype = stored.dtype}, h);
      ledger.add(dense);
      prefill += dense_ledger({.classes = {c}, .dtype = stored.dtype}, {.prompt = h.prompt, .sequences = h.sequences}).total();
      continue;
    }
    const std::int64_t heads = std::int64_t{c.kv_heads} * h.sequences;
    std::int64_t word_bytes = 0;
    for (const Word& w : rule.words) word_bytes += w.size(c);
    const std::int64_t row_bytes = std::int64_t{c.k_dim + c.v_dim} * bytes_of(stored.dtype);
    std::int64_t rows = 0, most = 0;
    const auto add_layers = [&](const Place& place, std::int64_t layers) {
      const std::int64_t now = kept_rows(rule, place, h);
      rows += now * heads * layers;
      most += (rule.trigger == Trigger::prompt_end ? now : most_rows(rule, place, h)) * heads * layers;
    };
    if (rule.layer_budget) {
      for (const Place& place : places_of(stored, c)) add_layers(place, 1);
    } else {
      add_layers(Place{}, c.count());
    }
    expected_keys += rows * c.k_dim;
    expected_values += rows * c.v_dim;
    if (rule.keeps_words())  // rules of both kinds, words and counts by content, do not occur: words follow the closed form
      for (const Word& w : rule.words) ledger.add(w.component, Side::both, Scope::token, Bytes(rows * w.size(c)));
    beyond += Bytes((most - rows) * (row_bytes + (rule.keeps_words() ? word_bytes : 0)));
    prefill += Bytes(h.prompt.value * heads * c.count() * (row_bytes + word_bytes)) + prompt_extras(rule, c, shape.dtype, h);
    if (rule.ragged) ledger.add("lengths", Side::both, Scope::layer, Bytes(std::int64_t{4} * (c.kv_heads + 1) * c.count() * h.sequences));
    if (rule.allocate) ledger.add("limit", Side::both, Scope::layer, Bytes(std::int64_t{4} * c.count() * h.sequences));
    if (rule.has_clock()) ledger.add("clock", Side::both, Scope::layer, Bytes(std::int64_t{4} * c.count() * h.sequences));
  }
  const std::int64_t element = bytes_of(stored.dtype);
  ledger.add("rows", Side::key, Scope::token, Bytes(counts.get("key_elements", expected_keys) * element));
  ledger.add("rows", Side::value, Scope::token, Bytes(counts.get("value_elements", expected_values) * element));
  ledger.set_prefill(prefill);
  ledger.set_high_water(ledger.total() + beyond);
  return ledger;
}

}  // namespace kvatlas::eviction

// Kernels of an eviction rule: attention over what is kept, and what an event costs (scoring, top-k, moves).
#include <algorithm>

#include <boost/container/small_vector.hpp>

#include "core/kernels/attention.hpp"
#include "core/kernels/select.hpp"
#include "core/kernels/store.hpp"
#include "reference/primitives/eviction/rule.hpp"
#include "reference/primitives/kept_rows.hpp"
#include "reference/primitives/plans.hpp"

namespace kvatlas::eviction {

namespace {

/// Layers of one class that hold the same number of rows.
struct Alike {
  Place place;
  std::int64_t layers = 0;
};
using Alikes = boost::container::small_vector<Alike, 2>;

template <class RowsOf>
Alikes alike_layers(const Rule& rule, const CacheShape& stored, const LayerClass& c, RowsOf rows_of) {
  if (!rule.layer_budget) return {{Place{}, c.count()}};  // nothing looks at the place: most methods, and their plans are made by the million
  Alikes groups;
  for (const Place& place : places_of(stored, c)) {
    const auto same = std::ranges::find_if(groups, [&](const Alike& g) { return rows_of(g.place) == rows_of(place); });
    if (same == groups.end()) {
      groups.push_back({place, 1});
    } else {
      ++same->layers;
    }
  }
  return groups;
}

/// The top-k of one event: every head by itself, or the heads of a layer together.
void add_choice(Plan& plan, const Rule& rule, const LayerClass& c, const History& h, std::int64_t candidates, std::int64_t k, double launches) {
  if (!rule.scorer.score || candidates <= 0) return;
  const std::int64_t heads = rule.ragged ? c.kv_heads : 1, rows = std::int64_t{h.sequences} * c.kv_heads / heads;
  plan.add(kernels::TopK{.rows = rows, .candidates = candidates * heads, .k = std::max<std::int64_t>(0, k) * heads}.call(launches));
}

}  // namespace

Plan decode_plan(const Rule& rule, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  const StoredShape as_stored(shape, rule.granularity);
  const CacheShape& stored = *as_stored;
  Plan plan;
  std::int64_t expected = 0;
  if (!counts.empty())
    for (const LayerClass& c : stored.classes)
      if (c.kind == RowKind::kv)
        for (const Place& place : places_of(stored, c)) expected += kept_rows(rule, place, h) * c.kv_heads * h.sequences;
  const std::int64_t held = counts.get("kept_rows", expected);
  for (const LayerClass& c : stored.classes) {
    if (add_state_step(plan, c, h)) continue;
    const double consumers = 1.0 + static_cast<double>(c.readers.size()) / c.count();
    for (const Alike& group : alike_layers(rule, stored, c, [&](const Place& p) { return attended_rows(rule, p, h); })) {
      std::int64_t rows = attended_rows(rule, group.place, h);
      if (held != expected && expected > 0) rows = std::max<std::int64_t>(1, rows * held / expected);
      const double layers = static_cast<double>(group.layers);
      const std::int64_t most = rule.quota(group.place, std::int64_t{1} << 30);
      const bool evicts = drops_rows(rule, group.place, h);
      // A slot that was freed takes the next token: rows then lie in any order and are read through a list of slots.
      const bool reuses = evicts && rule.trigger == Trigger::every_step;
      const CodeFormat plain = CodeFormat::plain(stored.dtype);
      plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = stored.dtype,
                               .k_format = plain, .v_format = plain}
                   .call(layers));
      plan.add(kernels::DecodeAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim,
                                        .v_dim = c.v_dim, .dtype = stored.dtype, .tokens = Tokens(rows), .k_format = plain, .v_format = plain,
                                        .run = reuses ? 1_tok : 0_tok,
                                        .emit_weights = rule.trigger != Trigger::prompt_end && (rule.scorer.weights_leave || rule.learns())}
                   .call(layers * consumers));
      plan.add(kernels::SpanMerge{.rows = std::int64_t{h.sequences} * c.q_heads, .v_dim = c.v_dim, .dtype = stored.dtype, .tokens = Tokens(rows)}
                   .call(layers * consumers));
      if (rule.trigger != Trigger::prompt_end && rule.learns()) {
        std::int64_t state = 0;
        for (const Word& w : rule.words) state += w.size(c);
        plan.add(kernels::MassUpdate{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .tokens = Tokens(rows),
                                     .state_bytes = state}
                     .call(layers));
      }
      if (!evicts) continue;
      // One token leaves a full cache at a step; other triggers pay once for all that leave together.
      const std::int64_t leave = rule.trigger == Trigger::every_step ? 1
                                 : rule.trigger == Trigger::overflow ? rule.room.value + 1 : rule.interval.value;
      const double events = layers / static_cast<double>(leave);
      if (rule.scorer.charge)
        rule.scorer.charge({.plan = plan, .c = c, .dtype = stored.dtype, .history = h, .rows = Tokens(rows), .prompt = false, .launches = events});
      add_choice(plan, rule, c, h, rows - rule.guarded(), leave, events);
      if (!reuses) add_compaction(plan, c, stored.dtype, h, std::max<std::int64_t>(1, most - rule.sinks.value), events);
    }
  }
  return plan;
}

Plan prefill_plan(const Rule& rule, const CacheShape& shape, const History& h) {
  Plan plan = dense_prefill_plan(shape, h);
  const StoredShape as_stored(shape, rule.granularity);
  const CacheShape& stored = *as_stored;
  for (const LayerClass& c : stored.classes) {
    if (c.kind != RowKind::kv || h.prompt.value == 0) continue;
    if (rule.learns() && rule.reads_prompt_weights)  // weights of all queries: a second pass over the causal half, as many pairs as half of the queries
      plan.add(kernels::WindowScore{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim,
                                    .dtype = stored.dtype, .context = h.prompt, .observation_window = Tokens(ceil_div(h.prompt.value, 2))}
                   .call(c.count()));
    for (const Alike& group : alike_layers(rule, stored, c, [&](const Place& p) { return kept_rows(rule, p, {.prompt = h.prompt}); })) {
      const std::int64_t kept = kept_rows(rule, group.place, {.prompt = h.prompt}), chosen = kept + rule.drafts(h.prompt.value);
      if (chosen >= h.prompt.value) continue;
      const double layers = static_cast<double>(group.layers);
      if (rule.scorer.charge)
        rule.scorer.charge({.plan = plan, .c = c, .dtype = stored.dtype, .history = h, .rows = h.prompt, .prompt = true, .launches = layers});
      add_choice(plan, rule, c, h, h.prompt.value - rule.guarded(), chosen - rule.guarded(), layers);
      add_compaction(plan, c, stored.dtype, h, kept, layers);
      if (rule.rerotate && c.rope.rotary_dim > 0)
        plan.add(kernels::RopeApply{.heads = std::int64_t{h.sequences} * c.kv_heads, .rows = kept, .dim = c.k_dim, .dtype = stored.dtype}.call(layers));
    }
  }
  return plan;
}

}  // namespace kvatlas::eviction

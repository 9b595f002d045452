// A method of token eviction as a list of parts: who scores, who is protected, how a budget is shared out over layers and
// heads, what is chosen, and when. The engine (cache.hpp, faces.hpp) makes cache, ledger and plans of it.
#pragma once

#include <algorithm>
#include <boost/container/small_vector.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/ledger.hpp"
#include "core/plan.hpp"
#include "reference/primitives/eviction/query_moments.hpp"
#include "reference/primitives/token_cache.hpp"

namespace kvatlas::eviction {

/// A layer among those that hold rows, in the order of the model.
struct Place {
  int layer = 0;    // index in the model
  int ordinal = 0;  // 0, 1, ... among the layers that hold rows
  int layers = 1;   // how many of them there are
};

/// What a layer shows to a scorer when tokens must leave.
struct Scene {
  const LayerClass& c;  // as stored: kv_heads own rows
  Place place;
  const TokenRows& rows;
  View<const float> queries;  // [q_heads, W, k_dim] after RoPE: the prompt's last ones, after it those of the step
  const RopeTable& rope;
  const QueryMoments* moments = nullptr;  // of the prompt's queries, where the scorer asked for them
  bool prompt = true;         // the event at the end of the prompt
};

/// One vector a row owner over slots 0, 1, ...; higher is kept. Slots behind the last score are not candidates and stay.
using Scores = std::vector<std::vector<float>>;
using Counts = std::vector<std::int64_t>;

/// What scoring the rows of some layers once costs: `launches` layers of class `c`, each with `rows` rows a head.
struct Charge {
  Plan& plan;
  const LayerClass& c;
  Dtype dtype;
  const History& history;
  Tokens rows;
  bool prompt;
  double launches;
};

struct Scorer {
  std::function<Scores(const Scene&)> score{};
  std::function<void(const Charge&)> charge{};  // none: scoring is free
  Tokens window{0};             // newest queries of the prompt that are held until it ends
  Tokens unscored{0};           // newest slots that get no score
  QueryMoments::Order moments = QueryMoments::Order::none;  // statistics of the prompt's queries before RoPE
  Tokens moments_skip{0};       // first tokens that they leave out
  bool weights_leave = false;   // in decode steps the attention kernel hands out its weights
};

/// Attention weights of one query of one query head, as they come: what a state per slot learns from.
struct Seen {
  TokenRows& rows;
  const Place& place;
  int head;                 // row owner
  int q_head;
  int head_in_group;
  std::int64_t position;    // of the query
  std::int64_t step;        // 0: a query of the prompt; 1, 2, ... after it where the rule counts steps
  std::int64_t first_slot;
  std::span<const float> weights;
};

/// A word beside every slot.
struct Word {
  std::string_view component;  // a literal
  int bytes = 4;
  int bits_per_query_head = 0;  // of the group that reads the slot; rounded up to bytes together
  int size(const LayerClass& c) const { return bytes + (bits_per_query_head * c.q_per_kv() + 7) / 8; }
};

enum class Trigger : std::uint8_t {
  prompt_end,  // once; generated tokens are all kept
  every_step,  // and after every step
  interval,    // and after every `interval` steps
  overflow     // and when a step makes one token more than the budget: then `room` tokens leave at once
};

struct Rule {
  const char* name = "";
  std::optional<std::string> refusal{};  // a limit of the method's own parameters

  Scorer scorer{};
  Tokens sinks{0}, recent_window{0};  // first and newest slots, never candidates

  Tokens budget{0};  // rows a head keeps, protected ones included
  Tokens whole{0};   // a prompt of up to so many rows stays whole and grows so far; then the budget holds
  std::function<std::int64_t(const Place&, std::int64_t rows)> layer_budget{};  // instead of `budget`; rows present
  /// Tokens that each head of a layer keeps of its candidates, when on average it may keep k; none: each keeps k.
  std::function<Counts(const Place&, const std::vector<std::span<const float>>& candidates, std::int64_t k)> share{};
  bool ragged = false;          // heads of a layer may keep different numbers of rows
  bool content_counts = false;  // ... and their sum depends on the content (the record is data_dependent)
  /// Slots of `candidates` that stay, k of them unless the record is data_dependent; none: top_k.
  std::function<Slots(std::span<const float> candidates, std::int64_t k)> select{};

  /// Rows that a layer keeps, as the content tells when the prompt ends; none: the quota.
  std::function<std::int64_t(const Scene&)> measure{};
  /// What a layer asks for when the prompt ends, and how the layers, in the order of the model, then share `quota` rows a head on
  /// average. A layer keeps to its number from then on (4 bytes a layer); 0: nothing had to leave, and the budget holds.
  std::function<double(const Scene&)> weigh{};
  std::function<Counts(const std::vector<double>& asked, std::int64_t rows)> allocate{};
  /// Rows that a head keeps, of `rows` present: the first `sinks` and the newest. For rules without a score whose heads differ.
  std::function<std::int64_t(const Place&, int head, std::int64_t rows)> head_budget{};
  bool rerotate = false;        // when the prompt ends kept keys move to the positions 0, 1, ...; later tokens follow on
  Tokens counts_steps{0};       // steps since the prompt are counted, up to so many (a clock of 4 bytes a layer); 0: not at all

  Trigger trigger = Trigger::prompt_end;
  Tokens interval{1};
  Tokens room{0};
  bool spares_prompt = false;   // no event at the end of the prompt
  Tokens drafted{0};            // newest tokens of a prompt that a draft wrote, part of the budget: they score, and leave when it ends
  bool any_mask = false;        // queries of the window may have seen what lies behind them: scores do not need a causal prompt
  Granularity granularity = Granularity::kv_head;

  std::vector<Word> words{};  // state per slot; of a prompt_end rule it goes when the prompt ends
  std::function<void(const Seen&)> observe{};
  bool reads_prompt_weights = true;  // false: `observe` learns nothing from weights of the prompt's queries

  /// Slots that no choice can drop.
  std::int64_t guarded() const { return sinks.value + std::max(recent_window, scorer.unscored).value; }
  /// Drafted tokens among the `rows` of a prompt: its first token is never one.
  std::int64_t drafts(std::int64_t rows) const { return std::clamp<std::int64_t>(rows - 1, 0, drafted.value); }
  /// Rows that a head keeps on average when `rows` are present.
  std::int64_t quota(const Place& place, std::int64_t rows) const;
  bool learns() const { return static_cast<bool>(observe); }
  bool has_clock() const { return counts_steps.value > 0 || trigger == Trigger::interval; }
  bool keeps_words() const { return trigger != Trigger::prompt_end; }
};

/// The places of the layers of `c` within `shape`, without allocation for models of up to 80 layers.
using Places = boost::container::small_vector<Place, 80>;
Places places_of(const CacheShape& shape, const LayerClass& c);

/// Rows that a head of this place holds on average after history `h`: the rule's closed form.
std::int64_t kept_rows(const Rule& rule, const Place& place, const History& h);
/// The same while the last step attends: its event has not come yet.
std::int64_t attended_rows(const Rule& rule, const Place& place, const History& h);
/// Whether the event of the last step drops rows.
bool drops_rows(const Rule& rule, const Place& place, const History& h);
/// The most rows that were held after a step on the way to `h`.
std::int64_t most_rows(const Rule& rule, const Place& place, const History& h);

std::optional<std::string> why_not(const Rule& rule, const CacheShape& shape);
Ledger ledger_formula(const Rule& rule, const CacheShape& shape, const History& h, const ContentCounts& counts);
Plan decode_plan(const Rule& rule, const CacheShape& shape, const History& h, const ContentCounts& counts);
Plan prefill_plan(const Rule& rule, const CacheShape& shape, const History& h);

}  // namespace kvatlas::eviction

#include "reference/primitives/eviction/cache.hpp"

#include <algorithm>
#include <cstring>

#include "core/errors.hpp"
#include "core/parallel.hpp"
#include "reference/primitives/eviction/faces.hpp"

namespace kvatlas::eviction {

namespace {

std::vector<std::byte> bytes_of_words(std::span<const std::int32_t> words) {
  std::vector<std::byte> bytes(words.size() * sizeof(std::int32_t));
  std::memcpy(bytes.data(), words.data(), bytes.size());
  return bytes;
}

/// Row counts of a head-ragged layer as running sums, with which its heads are found in one flat store.
std::vector<std::int32_t> running_sums(const TokenRows& rows) {
  std::vector<std::int32_t> sums{0};
  for (int h = 0; h < rows.heads(); ++h) sums.push_back(sums.back() + static_cast<std::int32_t>(rows.count(h)));
  return sums;
}

bool holds(std::span<const NamedBuffer> saved, const std::string& name) {
  return std::ranges::find(saved, name, &NamedBuffer::name) != saved.end();
}

}  // namespace

Cache::Cache(Rule rule, const CacheShape& cache_shape) : TokenCache(cache_shape, rule.granularity), rule_(std::move(rule)) {
  for (Layer& l : layers()) {
    for (const Word& w : rule_.words) l.rows.add_words(w.component, w.bytes);
    const std::vector<Place> places = places_of(shape(), l.c);
    beside_.push_back({.place = *std::ranges::find(places, l.index, &Place::layer),
                       .queries = QueryWindow(l.c.q_heads, l.c.k_dim, shape().dtype, rule_.scorer.window.value)});
  }
}

void Cache::check(const Layer&, const StepInput& step) const {
  if (rule_.scorer.window.value == 0 || step.mask.kind == MaskKind::causal || step.positions.size() <= 1) return;
  if (!prompt_done()) throw Unsupported(cat(rule_.name, " scores a causal prompt: mask must be causal until the prompt ends"));
  if (rule_.trigger != Trigger::prompt_end) throw Unsupported(cat(rule_.name, " scores causal steps: mask must be causal"));
}

void Cache::step(Layer& l, const PreparedStep& p, const StepInput& in, View<float> out) {
  l.rows.append(p.k.view(), p.v.view());
  if (rule_.learns() && l.rows.word_count() == rule_.words.size()) {
    const int group = l.c.q_per_kv();
    attend(l, p, in, out, [&](int q_head, std::int64_t query, std::int64_t first, std::span<const float> weights) {
      rule_.observe({.rows = l.rows, .head = q_head / group, .q_head = q_head, .query = query, .first_slot = first, .weights = weights});
    });
  } else {
    attend(l, p, in, out);
  }
  if (!prompt_done()) {
    if (rule_.scorer.window.value > 0) beside_[l.ordinal].queries.append(p.q.view());
  } else if (rule_.trigger != Trigger::prompt_end && due(l, p.n)) {
    const std::int64_t newest = std::min(p.n, std::max<std::int64_t>(1, rule_.scorer.window.value));
    const std::int64_t room = rule_.trigger == Trigger::overflow ? rule_.room.value : 0;
    evict(l, View<const float>(p.q.view()).slice(1, p.n - newest, newest), rule_.quota(beside_[l.ordinal].place, l.rows.count(0)) - room);
  }
}

bool Cache::due(Layer& l, std::int64_t tokens) {
  Beside& b = beside_[l.ordinal];
  if (rule_.trigger == Trigger::overflow) return l.rows.count(0) > rule_.quota(b.place, l.rows.count(0));
  if (rule_.trigger != Trigger::interval) return true;
  b.clock += tokens;
  const bool now = b.clock >= rule_.interval.value;
  b.clock %= rule_.interval.value;
  return now;
}

void Cache::after_prompt(Layer& l) {
  Beside& b = beside_[l.ordinal];
  const std::int64_t rows = l.rows.count(0), quota = rule_.quota(b.place, rows);
  const Array queries = b.queries.read();
  if (!rule_.spares_prompt)
    evict(l, queries.view(), rule_.trigger == Trigger::overflow && quota < rows ? quota - rule_.room.value : quota);
  b.queries.clear();
  if (!rule_.keeps_words()) l.rows.drop_words();
}

void Cache::evict(Layer& l, View<const float> queries, std::int64_t quota) const {
  const std::int64_t rows = l.rows.count(0);  // before a ragged choice all heads hold the same rows
  if (rows <= quota) return;
  const Scores scores = rule_.scorer.score({.c = l.c, .place = beside_[l.ordinal].place, .rows = l.rows, .queries = queries,
                                            .rope = rotary().of(l.index), .prompt = !prompt_done()});
  KV_ASSERT(static_cast<int>(scores.size()) == l.rows.heads(), "a scorer serves every head that owns rows");
  const std::int64_t first = std::min(rule_.sinks.value, rows);
  const std::int64_t end = std::max(first, std::min(rows - rule_.recent_window.value, static_cast<std::int64_t>(scores.front().size())));
  const std::int64_t k = std::max<std::int64_t>(0, quota - first - (rows - end));
  std::vector<std::span<const float>> candidates;
  for (const auto& head : scores)
    candidates.push_back(std::span(head).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(end - first)));
  const Counts counts = rule_.share ? rule_.share(beside_[l.ordinal].place, candidates, k) : Counts(candidates.size(), k);
  parallel_for(l.rows.heads(), [&](std::int64_t h) {
    const auto at = static_cast<std::size_t>(h);
    Slots kept = ends(first, first, 0);
    for (const std::int64_t s : rule_.select ? rule_.select(candidates[at], counts[at]) : top_k(candidates[at], counts[at]))
      kept.push_back(first + s);
    l.rows.keep(static_cast<int>(h), with_tail(std::move(kept), end, rows));
  });
}

/// Where nothing is dropped after the prompt, what came since can go; inside a prompt, queries that slid out of the window
/// cannot come back, nor can weights that slots have learned from.
std::int64_t Cache::restorable(const Layer& l) const {
  const std::int64_t rows = l.rows.count(0);
  if (prompt_done()) return rule_.trigger == Trigger::prompt_end ? l.appended : 0;
  return rule_.learns() || (rule_.scorer.window.value > 0 && rows > rule_.scorer.window.value) ? 0 : rows;
}

void Cache::crop_more(Layer& l, std::int64_t removed) {
  QueryWindow& queries = beside_[l.ordinal].queries;
  if (!prompt_done() && rule_.scorer.window.value > 0) queries.truncate(queries.count() - removed);
}

void Cache::buffers_more(const Layer& l, std::vector<NamedBuffer>& out) const {
  const Beside& b = beside_[l.ordinal];
  b.queries.buffers(prefix(l) + "window_queries", out);
  if (rule_.ragged && prompt_done())
    out.push_back({.name = prefix(l) + "lengths", .component = "lengths", .side = Side::both, .scope = Scope::layer,
                   .bytes = bytes_of_words(running_sums(l.rows))});
  if (rule_.trigger == Trigger::interval) {
    const std::int32_t clock = static_cast<std::int32_t>(b.clock);
    out.push_back({.name = prefix(l) + "clock", .component = "clock", .side = Side::both, .scope = Scope::layer,
                   .bytes = bytes_of_words({&clock, 1})});
  }
}

void Cache::before_load(TokenRows& rows, const std::string& prefix, std::span<const NamedBuffer> saved) const {
  if (!rule_.keeps_words() && !rule_.words.empty() && !holds(saved, cat(prefix, rule_.words.front().component, "/head0"))) rows.drop_words();
}

void Cache::check_loaded(const Layer& l, std::span<const NamedBuffer> saved) const {
  const std::string name = prefix(l) + "lengths";
  if (!rule_.ragged || !holds(saved, name)) {
    TokenCache::check_loaded(l, saved);
  } else if (find_buffer(saved, name).bytes != bytes_of_words(running_sums(l.rows))) {
    throw InvalidArgument(cat("buffer ", name, " does not hold the running sums of the heads' rows"));
  }
}

void Cache::load_more(std::span<const NamedBuffer> saved) {
  auto loaded = beside_;
  for (const Layer& l : layers()) {
    Beside& b = loaded[l.ordinal];
    b.queries.load(prefix(l) + "window_queries", saved);
    if (rule_.trigger != Trigger::interval) continue;
    const NamedBuffer& clock = find_buffer(saved, prefix(l) + "clock");
    std::int32_t value = -1;
    if (clock.bytes.size() == sizeof value) std::memcpy(&value, clock.bytes.data(), sizeof value);
    if (value < 0 || value >= rule_.interval.value)
      throw InvalidArgument(cat("buffer ", clock.name, " does not hold a number of steps below ", rule_.interval.value));
    b.clock = value;
  }
  beside_ = std::move(loaded);
}

bool Cache::prompt_open() const {
  if (layers().empty()) return false;
  if (!rule_.keeps_words() && !rule_.words.empty()) return layers().front().rows.word_count() > 0;
  return std::ranges::any_of(beside_, [](const Beside& b) { return b.queries.count() > 0; });
}

ContentCounts Cache::content_counts() const {
  ContentCounts counts;
  if (!rule_.content_counts) return counts;
  for (const Layer& l : layers())
    for (int h = 0; h < l.rows.heads(); ++h) {
      counts.add("kept_rows", l.rows.count(h));
      counts.add("key_elements", l.rows.count(h) * l.c.k_dim);
      counts.add("value_elements", l.rows.count(h) * l.c.v_dim);
    }
  return counts;
}

std::unique_ptr<KvCache> open(Rule rule, const CacheShape& shape) { return std::make_unique<Cache>(std::move(rule), shape); }

}  // namespace kvatlas::eviction

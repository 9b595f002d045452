// snapkv: when the prompt is complete, each kv head keeps the tokens to which the prompt's last queries pay attention.
// Source    sheet snapkv; Li et al. 2024, section 4 and listing 1; official code snapkv/monkeypatch/snapkv_utils.py
// Keeps     budget tokens of the prompt, its last observation_window tokens among them, and every generated token; keys
//           after RoPE at true positions
// Deviates  one choice for each kv head where the official code repeats keys for every query head (granularity=query_head);
//           weights are summed in fixed point; kept tokens stay in the order of the text
#include <algorithm>

#include "core/errors.hpp"
#include "core/kernels/select.hpp"
#include "core/parallel.hpp"
#include "reference/method.hpp"
#include "reference/primitives/kept_rows.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/token_cache.hpp"
#include "reference/primitives/window_scores.hpp"

namespace kvatlas::methods {
namespace {

constexpr std::array<std::string_view, 2> kPoolingNames{"avg", "max"};
constexpr std::array<std::string_view, 3> kGroupNames{"mean", "max", "sum"};
constexpr std::array<std::string_view, 2> kWindowNames{"sum", "mean"};

struct Params {  // defaults: the published LongBench runs (c1024_w32_k7_maxpool)
  Tokens budget = 1024_tok;
  Tokens observation_window = 32_tok;
  int kernel = 7;
  Pooling pooling = Pooling::max;
  GroupReduce group_reduce = GroupReduce::mean;
  WindowReduce window_reduce = WindowReduce::sum;
  bool pool_first = false;
  Granularity granularity = Granularity::kv_head;
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::budget, "budget", "token", 1, 1 << 20, "tokens of the prompt kept, observation window included"),
        field(&Params::observation_window, "observation_window", "token", 1, 4096, "last prompt queries that score; always kept"),
        field(&Params::kernel, "kernel", "token", 1, 255, "tokens of one pooling window, odd"),
        choice(&Params::pooling, "pooling", kPoolingNames, "how a token's score gathers its neighbours'"),
        choice(&Params::group_reduce, "group_reduce", kGroupNames, "how the query heads of a group become one score"),
        choice(&Params::window_reduce, "window_reduce", kWindowNames, "how the queries of the window become one score"),
        flag(&Params::pool_first, "pool_first", "pool each query head before the group is reduced"),
        choice(&Params::granularity, "granularity", kGranularityNames, "heads that choose, and own rows, by themselves")};
  }
  ScoreReduce reduce() const { return {window_reduce, group_reduce, pooling, kernel, pool_first}; }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.kernel % 2 == 0) return cat("kernel is ", p.kernel, ", must be odd");
  if (p.budget < p.observation_window)
    return cat("budget is ", p.budget.value, ", must be at least observation_window (", p.observation_window.value, ")");
  for (const LayerClass& c : shape.classes)
    if (c.attention_sink) return "learned sink logits: the scores of the window would need them after the prompt";
  return why_not_rows(shape);
}

Tokens kept_of_prompt(const Params& p, const History& h) { return std::min(h.prompt, p.budget); }

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  const CacheShape stored = stored_shape(shape, p.granularity);
  Ledger ledger = kept_ledger(stored, h, kept_of_prompt(p, h) + h.generated);
  Bytes prefill = kept_ledger(stored, {.prompt = h.prompt, .sequences = h.sequences}, h.prompt).total();
  for (const LayerClass& c : shape.classes)
    if (c.kind == RowKind::kv)
      prefill += Bytes(std::min(h.prompt, p.observation_window).value * c.q_heads * c.k_dim * bytes_of(shape.dtype) * c.count() * h.sequences);
  ledger.set_prefill(prefill);
  return ledger;
}

Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  const CacheShape stored = stored_shape(shape, p.granularity);
  Plan plan;
  for (const LayerClass& c : stored.classes)
    if (!add_state_step(plan, c, h))
      add_kept_step(plan, c, stored.dtype, h, {.tokens = std::max(1_tok, kept_of_prompt(p, h) + h.generated)});
  return plan;
}

Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan = dense_prefill_plan(shape, h);
  if (h.prompt <= p.budget) return plan;
  const std::int64_t chosen = (p.budget - p.observation_window).value, candidates = (h.prompt - p.observation_window).value;
  for (const LayerClass& c : stored_shape(shape, p.granularity).classes) {
    if (c.kind != RowKind::kv) continue;
    plan.add(kernels::WindowScore{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim,
                                  .dtype = shape.dtype, .context = h.prompt, .observation_window = p.observation_window}
                 .call(c.count()));
    plan.add(kernels::TopK{.rows = std::int64_t{h.sequences} * c.kv_heads, .candidates = candidates, .k = chosen}.call(c.count()));
    add_compaction(plan, c, shape.dtype, h, p.budget.value, c.count());
  }
  return plan;
}

/// The official code stores keys and values once for every query head.
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Params released = p;
  released.granularity = Granularity::query_head;
  return decode_plan(released, shape, h, counts);
}

class Cache final : public TokenCache {
 public:
  Cache(const Params& p, const CacheShape& shape) : TokenCache(shape, p.granularity), p_(p) {
    for (const Layer& l : layers()) queries_.emplace_back(l.c.q_heads, l.c.k_dim, shape.dtype, p_.observation_window.value);
  }

 private:
  void check(const Layer&, const StepInput& step) const override {
    if (!prompt_done() && step.mask.kind != MaskKind::causal && step.positions.size() > 1)
      throw Unsupported("snapkv scores a causal prompt: mask must be causal until the prompt ends");
  }

  void step(Layer& l, const PreparedStep& p, const StepInput& in, View<float> out) override {
    l.rows.append(p.k.view(), p.v.view());
    attend(l, p, in, out);
    if (!prompt_done()) queries_[l.ordinal].append(p.q.view());
  }

  void after_prompt(Layer& l) override {
    QueryWindow& queries = queries_[l.ordinal];
    const std::int64_t rows = l.rows.count(0), window = queries.count();
    if (rows > p_.budget.value) {  // rows == budget would select every candidate
      const Array q = queries.read();
      parallel_for(l.c.kv_heads, [&](std::int64_t h) {
        const int head = static_cast<int>(h);
        const Array k = l.rows.keys(head);
        const auto scores = reduce_masses(window_masses(l.c, head, q.view(), k.view()), window, p_.reduce());
        l.rows.keep(head, with_tail(top_k(scores, p_.budget.value - window), rows - window, rows));
      });
    }
    queries.clear();
  }

  /// After the prompt nothing is dropped any more. Inside it, queries that slid out of the window cannot come back.
  std::int64_t restorable(const Layer& l) const override {
    if (prompt_done()) return l.appended;
    return l.rows.count(0) <= p_.observation_window.value ? l.rows.count(0) : 0;
  }
  void crop_more(Layer& l, std::int64_t removed) override {
    QueryWindow& queries = queries_[l.ordinal];
    if (!prompt_done()) queries.truncate(queries.count() - removed);
  }

  void buffers_more(const Layer& l, std::vector<NamedBuffer>& out) const override {
    queries_[l.ordinal].buffers(prefix(l) + "window_queries", out);
  }
  void load_more(std::span<const NamedBuffer> saved) override {
    auto loaded = queries_;
    for (const Layer& l : layers()) loaded[l.ordinal].load(prefix(l) + "window_queries", saved);
    queries_ = std::move(loaded);
  }
  bool prompt_open() const override {
    return std::ranges::any_of(queries_, [](const QueryWindow& q) { return q.count() > 0; });
  }

  Params p_;
  std::vector<QueryWindow> queries_;  // by ordinal; empty once the prompt has ended
};

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs&) {
  return std::make_unique<Cache>(p, shape);
}

constexpr Compat kCompat[] = {
    {"granularity=query_head", "keys and values are repeated before they are cached: q_heads / kv_heads times the bytes"},
    {"pool_first=true,window_reduce=mean,pooling=avg", "kvpress pools every query head, then averages the group"}};

}  // namespace

extern constinit const Method snapkv{
    .slug = "snapkv", .name = "SnapKV", .family = Family::eviction,
    .paper = {.title = "SnapKV: LLM Knows What You are Looking for Before Generation", .url = "https://arxiv.org/abs/2404.14469", .year = 2024},
    .params = specs<Params>, .compat = kCompat,
    .serving = {.prefix_cache = {Works::no, "the choice depends on the end of the prompt, and dropped rows are gone"},
                .paged_cache = {Works::yes, "each kv head fills its pages with its own tokens; counts are equal"},
                .chunked_prefill = {Works::yes, "the choice comes when the prompt is complete; all of its rows are held until then"},
                .cuda_graphs = {Works::yes, "decode steps are those of an uncompressed cache"},
                .tensor_parallelism = {Works::yes, "kv heads choose independently"},
                .speculation = {Works::yes, "generated tokens are all kept and can be taken back"},
                .multi_turn = {Works::partly, "what the first question did not look at is gone for the second"}},
    .exact_when = "budget=1M",
    .notes = "Selection needs budget >= observation_window; kvpress also allows smaller budgets, where tied window tokens are "
             "picked arbitrarily. Scores are computed from the stored window queries after the prompt, not emitted by its "
             "attention. Released plan: the official code's rows for every query head.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .released_decode_plan = typed<released_decode_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods

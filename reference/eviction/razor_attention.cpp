// razor_attention: retrieval heads keep every token; the others keep the first and newest ones, and one pair that stands for all the rest.
// Source    sheet razor_attention; Tang et al. 2024, arXiv 2407.15891 (ICLR 2025), algorithm 1, equations 4 and 5; no official code
// Keeps     of retrieval heads all rows; of the others `sinks`, max(recent_window, tokens / compression) newest ones, and once something has
//           left the mean of the keys and of the values that left, with their number in 4 bytes; keys after RoPE at true positions
// Deviates  the window grows with the text, as with a longer prompt; a token that leaves later joins the means one by one (means in the
//           cache's dtype: beside thousands of tokens one more may not move them)
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/kernels/transform.hpp"
#include "core/parallel.hpp"
#include "reference/method.hpp"
#include "reference/primitives/attention.hpp"
#include "reference/primitives/eviction/ragged.hpp"
#include "reference/primitives/eviction/trained.hpp"
#include "reference/primitives/head_classes.hpp"
#include "reference/primitives/kept_rows.hpp"
#include "reference/primitives/numbers.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/token_cache.hpp"

namespace kvatlas::methods {
namespace {

enum class Compensation : std::uint8_t { weighted, unweighted };
constexpr std::array<std::string_view, 2> kCompensationNames{"weighted", "unweighted"};

struct Params {
  double induction = 0.14;
  double echo = 0.01;
  Tokens sinks = 4_tok;
  Tokens recent_window = 4000_tok;
  int compression = 5;
  Compensation compensation = Compensation::weighted;
  static constexpr auto fields() {
    return std::tuple{field(&Params::induction, "induction", "", 0, 1, "share of heads that keep everything for their induction score"),
                      field(&Params::echo, "echo", "", 0, 1, "share of heads that keep everything for their echo score"),
                      field(&Params::sinks, "sinks", "token", 0, 1 << 16, "first tokens of the other heads"),
                      field(&Params::recent_window, "recent_window", "token", 1, 1 << 20, "fewest newest tokens of the other heads"),
                      field(&Params::compression, "compression", "", 1, 1024, "the newest one of so many tokens stay where that is more"),
                      choice(&Params::compensation, "compensation", kCompensationNames, "the pair of means counts as what it stands for, or as one token")};
  }
  /// Rows of a head that is no retrieval head, after so many tokens.
  std::int64_t short_rows(std::int64_t tokens) const {
    return std::min(tokens, sinks.value + std::max(recent_window.value, tokens / compression));
  }
};

using Classes = std::map<int, std::vector<bool>>;  // by layer: whether each kv head keeps everything

std::int64_t chosen_heads(double share, std::int64_t heads) { return static_cast<std::int64_t>(std::nearbyint(share * static_cast<double>(heads))); }

/// Marks the best `share` of all kv heads, whose scores are the largest of their query heads'; of equal ones the lower layer, then head.
void mark_best(double share, const std::map<int, NamedTensor>& scores, Classes& classes) {
  struct Head {
    float score;
    int layer;
    std::size_t head;
  };
  std::vector<Head> all;
  for (const auto& [layer, t] : scores) {
    const std::size_t heads = classes.at(layer).size(), group = t.values.size() / heads;
    for (std::size_t h = 0; h < heads; ++h)
      all.push_back({*std::max_element(t.values.begin() + static_cast<std::ptrdiff_t>(h * group), t.values.begin() + static_cast<std::ptrdiff_t>((h + 1) * group)), layer, h});
  }
  std::ranges::stable_sort(all, [](const Head& a, const Head& b) { return a.score > b.score; });
  all.resize(static_cast<std::size_t>(std::min(chosen_heads(share, static_cast<std::int64_t>(all.size())), static_cast<std::int64_t>(all.size()))));
  for (const Head& h : all) classes.at(h.layer)[h.head] = true;
}

Classes retrieval_heads(const Params& p, const CacheShape& shape, const OpenInputs& in) {
  Classes classes;
  for (const LayerClass& c : shape.classes)
    for (const int layer : c.layers)
      if (c.kind == RowKind::kv) classes[layer].resize(static_cast<std::size_t>(c.kv_heads), false);
  const auto q_heads = [](const LayerClass& c) { return std::vector<std::int64_t>{c.q_heads}; };
  mark_best(p.induction, eviction::trained_by_layer(in, shape, "induction", q_heads), classes);
  mark_best(p.echo, eviction::trained_by_layer(in, shape, "echo", q_heads), classes);
  return classes;
}

/// Heads of the layers of `c` that are expected to be cut: the same share everywhere, no head chosen twice.
std::int64_t expected_short(const Params& p, const CacheShape& shape, const LayerClass& c) {
  const std::int64_t all = stored_heads(shape, {}), full = std::min(all, chosen_heads(p.induction, all) + chosen_heads(p.echo, all));
  return std::int64_t{c.kv_heads} * c.count() * (all - full) / std::max<std::int64_t>(1, all);
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Ledger ledger;
  const std::int64_t tokens = h.tokens().value, rows = p.short_rows(tokens);
  std::int64_t keys = 0, values = 0, mean_keys = 0, mean_values = 0, heads = 0;
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) {
      ledger.add(dense_ledger({.classes = {c}, .dtype = shape.dtype}, h));
      continue;
    }
    const std::int64_t cut = expected_short(p, shape, c) * h.sequences, full = std::int64_t{c.kv_heads} * c.count() * h.sequences - cut;
    keys += (full * tokens + cut * rows) * c.k_dim;
    values += (full * tokens + cut * rows) * c.v_dim;
    mean_keys += rows < tokens ? cut * c.k_dim : 0;
    mean_values += rows < tokens ? cut * c.v_dim : 0;
    heads += cut;
  }
  const std::int64_t element = bytes_of(shape.dtype);
  ledger.add("rows", Side::key, Scope::token, Bytes(counts.get("key_elements", keys) * element));
  ledger.add("rows", Side::value, Scope::token, Bytes(counts.get("value_elements", values) * element));
  ledger.add("mean", Side::key, Scope::head, Bytes(counts.get("mean_key_elements", mean_keys) * element));
  ledger.add("mean", Side::value, Scope::head, Bytes(counts.get("mean_value_elements", mean_values) * element));
  ledger.add("dropped", Side::both, Scope::head, Bytes(std::int64_t{4} * counts.get("short_heads", heads)));
  ledger.set_prefill(kept_ledger(shape, {.prompt = h.prompt, .sequences = h.sequences}, h.prompt).total());
  return ledger;
}

/// Two calls of attention a layer; the pair of means is one more entry.
Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Plan plan;
  const std::int64_t tokens = std::max<std::int64_t>(1, h.tokens().value), before = p.short_rows(tokens - 1), all = std::max<std::int64_t>(1, stored_heads(shape, h));
  const bool folds = before < tokens - 1;
  for (const LayerClass& c : shape.classes) {
    if (add_state_step(plan, c, h)) continue;
    const std::int64_t heads = std::int64_t{c.kv_heads} * c.count(), counted = counts.get("short_heads", -1);
    const std::int64_t cut = counted < 0 ? expected_short(p, shape, c) : heads * counted / all;
    add_head_classes_step(plan, c, shape.dtype, h, heads - cut, tokens, before + 1 + (folds ? 1 : 0));
    for (const int dim : {c.k_dim, c.v_dim})  // the oldest row behind the sinks joins the means; the new one takes its slot
      plan.add(kernels::WeightedMerge{.heads = std::int64_t{h.sequences} * cut, .rows = 1, .row_bytes = std::int64_t{dim} * bytes_of(shape.dtype), .dim = dim}
                   .call(folds && cut > 0 ? 1 : 0));
  }
  return plan;
}

Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan = dense_prefill_plan(shape, h);
  const std::int64_t rows = p.short_rows(h.prompt.value), dropped = h.prompt.value - rows;
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv || dropped <= 0) continue;
    const std::int64_t cut = expected_short(p, shape, c);
    const double share = static_cast<double>(cut) / static_cast<double>(c.kv_heads);  // launches as if whole layers were cut
    for (const int dim : {c.k_dim, c.v_dim})
      plan.add(kernels::WeightedMerge{.heads = std::int64_t{h.sequences} * c.kv_heads, .rows = dropped, .row_bytes = std::int64_t{dim} * bytes_of(shape.dtype), .dim = dim}
                   .call(share));
    if (cut > 0) add_compaction(plan, c, shape.dtype, h, rows, share);
  }
  return plan;
}

/// A row and a count for every head; both empty while nothing has left.
struct Means {
  std::vector<std::vector<float>> keys, values;  // by head, in values of the dtype
  std::vector<std::int64_t> dropped;             // by head
};

class Cache final : public TokenCache {
 public:
  Cache(const Params& p, const CacheShape& shape, Classes full) : TokenCache(shape, Granularity::kv_head), p_(p), full_(std::move(full)) {
    for (const Layer& l : layers()) {
      const auto heads = static_cast<std::size_t>(l.c.kv_heads);
      means_.push_back({.keys = std::vector<std::vector<float>>(heads), .values = std::vector<std::vector<float>>(heads), .dropped = std::vector<std::int64_t>(heads, 0)});
    }
  }

  ContentCounts content_counts() const override {
    ContentCounts counts;
    for (const Layer& l : layers()) {
      eviction::count_kept(l.rows, l.c, counts);
      std::int64_t pairs = 0, cut = 0;
      for (int h = 0; h < l.c.kv_heads; ++h) {
        pairs += dropped(l, h) > 0 ? 1 : 0;
        cut += prompt_done() && !keeps_all(l, h) ? 1 : 0;
      }
      counts.add("mean_key_elements", pairs * l.c.k_dim);
      counts.add("mean_value_elements", pairs * l.c.v_dim);
      counts.add("short_heads", cut);
    }
    return counts;
  }

 private:
  bool keeps_all(const Layer& l, int head) const { return full_.at(l.index)[static_cast<std::size_t>(head)]; }
  std::int64_t dropped(const Layer& l, int head) const { return means_[l.ordinal].dropped[static_cast<std::size_t>(head)]; }

  void check(const Layer& l, const StepInput& step) const override {
    if (step.mask.kind == MaskKind::causal || step.positions.size() <= 1) return;
    for (int h = 0; h < l.c.kv_heads; ++h)
      if (dropped(l, h) > 0) throw Unsupported("razor_attention: mask must be causal once tokens have joined the means");
  }

  void step(Layer& l, const PreparedStep& p, const StepInput& in, View<float> out) override {
    l.rows.append(p.k.view(), p.v.view());
    parallel_for(l.c.kv_heads, [&](std::int64_t head) {
      const int h = static_cast<int>(head);
      const Array k = l.rows.keys(h), v = l.rows.values(h);
      if (dropped(l, h) == 0) {
        attend_new(l.c, h, p.q.view(), k.view(), v.view(), in.mask, in.sinks, out);
      } else {
        attend_with_mean(l, h, p, k.view(), v.view(), in.sinks, out);
      }
      if (prompt_done()) cut(l, h);
    });
  }

  /// The pair of means comes behind the rows: its logit is larger by the logarithm of what it stands for.
  void attend_with_mean(const Layer& l, int head, const PreparedStep& p, View<const float> k, View<const float> v, View<const float> sinks, View<float> out) const {
    const Means& means = means_[l.ordinal];
    const auto at = static_cast<std::size_t>(head);
    const float scale = logit_scale(l.c), weight = p_.compensation == Compensation::weighted ? num::log2(static_cast<float>(means.dropped[at])) : 0.0F;
    const View<const float> key(means.keys[at].data(), {1, l.c.k_dim}), value(means.values[at].data(), {1, l.c.v_dim});
    for (int g = 0; g < l.c.q_per_kv(); ++g) {
      const int q_head = head * l.c.q_per_kv() + g;
      for (std::int64_t i = 0; i < p.n; ++i) {
        const std::int64_t seen = k.dim(0) - p.n + i + 1;
        const auto q = p.q.view().row(q_head, i);
        std::vector<float> x(static_cast<std::size_t>(seen)), mean(1);
        logits(q, k.slice(0, 0, seen), scale, x);
        logits(q, key, scale, mean);
        mean[0] += weight;
        SoftmaxPart part = softmax_part(x, v.slice(0, 0, seen));
        merge_into(part, softmax_part(mean, value));
        if (l.c.attention_sink && !sinks.empty()) add_sink(part, sinks(q_head) * 1.44269504F);
        finish(part, out.row(q_head, i));
      }
    }
  }

  void after_prompt(Layer& l) override {
    for (int h = 0; h < l.rows.heads(); ++h) cut(l, h);
  }

  /// Rows beyond a short head's share leave, the oldest first.
  void cut(Layer& l, int head) {
    const std::int64_t rows = l.rows.count(head);
    if (keeps_all(l, head)) return;
    Means& means = means_[l.ordinal];
    const auto at = static_cast<std::size_t>(head);
    const std::int64_t left = p_.short_rows(rows + means.dropped[at]), first = p_.sinks.value;
    if (rows <= left) return;
    const Array keys = l.rows.keys(head), values = l.rows.values(head);
    fold(keys, first, rows - left, means.dropped[at], means.keys[at]);
    fold(values, first, rows - left, means.dropped[at], means.values[at]);
    means.dropped[at] += rows - left;
    l.rows.keep(head, ends(rows, first, left - first));
  }

  /// The mean of rows [first, first + n) in float64, ascending; rows that come later move it one by one, in float32.
  void fold(const Array& rows, std::int64_t first, std::int64_t n, std::int64_t dropped, std::vector<float>& mean) const {
    const auto dim = static_cast<std::size_t>(rows.dims()[1]);
    if (dropped == 0) {
      mean.assign(dim, 0.0F);
      for (std::size_t i = 0; i < dim; ++i) {
        double sum = 0;
        for (std::int64_t t = first; t < first + n; ++t) sum += static_cast<double>(rows.view().row(t)[i]);
        mean[i] = static_cast<float>(sum / static_cast<double>(n));
      }
      round_all(shape().dtype, mean);
      return;
    }
    for (std::int64_t t = first; t < first + n; ++t) {
      const auto row = rows.view().row(t);
      const auto count = static_cast<float>(++dropped);
      for (std::size_t i = 0; i < dim; ++i) mean[i] += (row[i] - mean[i]) / count;
      round_all(shape().dtype, mean);
    }
  }

  /// Means do not give a token back.
  std::int64_t restorable(const Layer& l) const override {
    for (int h = 0; h < l.c.kv_heads; ++h)
      if (dropped(l, h) > 0) return 0;
    return l.rows.count(0);
  }

  void buffers_more(const Layer& l, std::vector<NamedBuffer>& out) const override {
    const Means& means = means_[l.ordinal];
    for (int h = 0; prompt_done() && h < l.c.kv_heads; ++h) {
      if (keeps_all(l, h)) continue;
      const auto at = static_cast<std::size_t>(h);
      out.push_back({.name = cat(prefix(l), "dropped/head", h), .component = "dropped", .side = Side::both, .scope = Scope::head, .bytes = {}});
      append_whole(out.back().bytes, means.dropped[at], 4);
      for (const bool key : {true, false}) {
        if (means.dropped[at] == 0) continue;
        out.push_back({.name = cat(prefix(l), key ? "k_mean/head" : "v_mean/head", h), .component = "mean", .side = key ? Side::key : Side::value, .scope = Scope::head, .bytes = {}});
        for (const float x : key ? means.keys[at] : means.values[at]) append_float(out.back().bytes, shape().dtype, x);
      }
    }
  }

  static bool has(std::span<const NamedBuffer> saved, const std::string& name) { return std::ranges::find(saved, name, &NamedBuffer::name) != saved.end(); }

  std::vector<float> read_mean(const std::string& name, int dim, std::span<const NamedBuffer> saved) const {
    const NamedBuffer& b = find_buffer(saved, name);
    const std::int64_t size = std::int64_t{dim} * bytes_of(shape().dtype);
    if (static_cast<std::int64_t>(b.bytes.size()) != size) throw InvalidArgument(cat("buffer ", name, " holds ", b.bytes.size(), " bytes, must be ", size));
    std::vector<float> mean;
    for (int i = 0; i < dim; ++i) mean.push_back(float_at(b.bytes, shape().dtype, i));
    if (!std::ranges::all_of(mean, [](float x) { return std::isfinite(x); })) throw InvalidArgument(cat("buffer ", name, " must be finite"));
    return mean;
  }

  /// All heads have seen the same tokens, and short ones hold what the rule leaves of them.
  void check_loaded(const Layer& l, std::span<const NamedBuffer> saved) const override {
    std::optional<std::int64_t> tokens;
    for (int h = 0; h < l.c.kv_heads; ++h) {
      const std::string name = cat(prefix(l), "dropped/head", h);
      const std::int64_t left = !keeps_all(l, h) && has(saved, name) ? read_count(name, saved) : 0, seen = l.rows.count(h) + left;
      if (tokens.value_or(seen) != seen || (left > 0 && l.rows.count(h) != p_.short_rows(seen)) || (has(saved, name) && l.rows.count(h) > p_.short_rows(seen)))
        throw InvalidArgument(cat("buffer ", prefix(l), "k_rows/head", h, " holds ", l.rows.count(h), " tokens, which does not fit the other heads or what has left"));
      tokens = seen;
    }
  }
  static std::int64_t read_count(const std::string& name, std::span<const NamedBuffer> saved) {
    const NamedBuffer& b = find_buffer(saved, name);
    if (b.bytes.size() != 4) throw InvalidArgument(cat("buffer ", name, " holds ", b.bytes.size(), " bytes, must be 4"));
    return whole_at(b.bytes, 0, 4);
  }

  void load_more(std::span<const NamedBuffer> saved) override {
    std::vector<Means> loaded = means_;
    bool after = false, before = false;
    for (const Layer& l : layers())
      for (int h = 0; h < l.c.kv_heads; ++h) {
        if (keeps_all(l, h)) continue;
        const auto at = static_cast<std::size_t>(h);
        const std::string name = cat(prefix(l), "dropped/head", h);
        (has(saved, name) ? after : before) = true;
        Means& means = loaded[l.ordinal];
        means.dropped[at] = has(saved, name) ? read_count(name, saved) : 0;
        means.keys[at] = means.dropped[at] > 0 ? read_mean(cat(prefix(l), "k_mean/head", h), l.c.k_dim, saved) : std::vector<float>{};
        means.values[at] = means.dropped[at] > 0 ? read_mean(cat(prefix(l), "v_mean/head", h), l.c.v_dim, saved) : std::vector<float>{};
      }
    if (after && before) throw InvalidArgument("buffers dropped/head must be there for all heads that drop tokens, or for none");
    means_ = std::move(loaded);
    loaded_open_ = before;
  }
  bool prompt_open() const override { return loaded_open_; }

  Params p_;
  Classes full_;
  std::vector<Means> means_;  // by ordinal of the cache
  bool loaded_open_ = false;
};

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs& in) {
  eviction::require_trained("razor_attention", in);
  return std::make_unique<Cache>(p, shape, retrieval_heads(p, shape, in));
}

constexpr Need kNeeds[] = {Need::trained_file};
constexpr Compat kCompat[] = {
    {"compensation=unweighted", "the port to MindSpore stores the means as one ordinary token, without the logarithm of their number"}};

}  // namespace

extern constinit const Method razor_attention{
    .slug = "razor_attention", .name = "RazorAttention", .family = Family::eviction,
    .paper = {.title = "RazorAttention: Efficient KV Cache Compression Through Retrieval Heads", .url = "https://arxiv.org/abs/2407.15891", .year = 2024},
    .params = specs<Params>, .needs = kNeeds, .compat = kCompat,
    .serving = {.prefix_cache = {Works::partly, "retrieval heads share their rows; of the others the means of a shared prefix and its first tokens"},
                .paged_cache = {Works::partly, "needs a page table for each class of heads, and a slot for the means"},
                .chunked_prefill = {Works::yes, "the classes do not depend on the text; rows are held until the prompt ends"},
                .cuda_graphs = {Works::yes, "two calls of attention; the window's length follows from that of the text"},
                .tensor_parallelism = {Works::partly, "ranks must hold equal numbers of retrieval heads"},
                .speculation = {Works::no, "a rejected token has pushed an old one into the means"},
                .multi_turn = {Works::yes, "what leaves does not depend on any question"}},
    .data_dependent = true, .exact_when = "recent_window=1M",
    .notes = "The trained file holds layer<l>.induction and layer<l>.echo [q_heads], measured once a model on 2,500 random tokens repeated four times; a kv head takes "
             "the larger score of its query heads, shares count over kv heads, halves to even. A reconstruction: windows of 4,000 and a fifth, and the equations of the "
             "compensation, are cited from memory by our source. The port's other defects (no causal mask, echo heads of the first layer alone) and the rule for "
             "ALiBi are not offered. Bytes and plans without counts spread retrieval heads evenly.",
    .why_not = [](const ParamRow&, const CacheShape& shape) { return why_not_rows(shape); }, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods

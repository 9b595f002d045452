// freqkv: a cache of fixed capacity; when it is full, the tokens behind the sinks are low-passed along the token axis.
// Source    sheet freqkv; Kai et al., arXiv 2505.00570, section 3 (iterative compression); DCT of the sheet's section 0.5
// Keeps     sinks and, behind them, resampled rows and exact newest rows; keys before RoPE, positions are slots
// Deviates  the resample is the dense operator in canonical order, the official code goes through a float32 FFT;
//           compression happens at the token that finds the cache full, so results do not depend on prompt chunks
#include <algorithm>
#include <cmath>

#include "core/dct.hpp"
#include "core/errors.hpp"
#include "core/kernels/attention.hpp"
#include "core/kernels/store.hpp"
#include "core/kernels/transform.hpp"
#include "core/parallel.hpp"
#include "reference/method.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/side_cache.hpp"

namespace kvatlas::methods {
namespace {

struct Params {
  Tokens capacity{4096};
  Tokens sinks{4};
  double ratio = 0.5;
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::capacity, "capacity", "token", 8, 32768, "slots of the cache; compression runs when they are full"),
        field(&Params::sinks, "sinks", "token", 0, 1024, "first tokens, never resampled"),
        field(&Params::ratio, "ratio", "fraction", 0.05, 0.95, "share of the frequencies of the resampled span that is kept")};
  }
  Tokens span() const { return capacity - sinks; }
  /// Coefficients that stay, as the official code truncates them.
  Tokens kept() const { return Tokens(static_cast<std::int64_t>(std::floor(static_cast<double>(span().value) * ratio))); }
  Tokens freed() const { return span() - kept(); }  // slots that one compression frees
  std::int64_t compressions(Tokens seen) const {
    return seen <= capacity ? 0 : ceil_div((seen - capacity).value, freed().value);
  }
  Tokens slots(Tokens seen) const { return seen - freed() * compressions(seen); }
  /// Slots that a step attends to, on average over the cycle it lies in: past the capacity the count runs from
  /// capacity - freed + 1 up to capacity and falls back. A plan for one context stands for its whole neighbourhood, and
  /// round contexts lie at the same point of the cycle.
  Tokens mean_slots(Tokens seen) const { return seen <= capacity ? seen : capacity - Tokens((freed().value - 1) / 2); }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.span().value < 2) return cat("capacity is ", p.capacity.value, ", must exceed sinks (", p.sinks.value, ") by at least 2");
  if (p.kept().value < 1) return cat("ratio is ", p.ratio, ", keeps no coefficient of a span of ", p.span().value, " tokens");
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) return "layers must cache keys and values; latent rows cannot be resampled before RoPE";
    if (c.window.value > 0) return cat("a sliding window of ", c.window.value, " tokens has no meaning over slots; use full for such layers");
  }
  return std::nullopt;
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger;
  for (const LayerClass& c : shape.classes) {
    const std::int64_t rows = p.slots(h.tokens()).value * c.kv_heads * c.count() * h.sequences * bytes_of(shape.dtype);
    ledger.add("rows", Side::key, Scope::token, Bytes(rows * c.k_dim));
    ledger.add("rows", Side::value, Scope::token, Bytes(rows * c.v_dim));
  }
  Bytes prompt{0}, most{0};
  for (const LayerClass& c : shape.classes) {
    const std::int64_t row = c.values_per_token() * c.count() * h.sequences * bytes_of(shape.dtype);
    prompt += Bytes(p.slots(h.prompt).value * row);
    most += Bytes(std::min(h.tokens(), p.capacity).value * row);
  }
  ledger.set_prefill(prompt);
  ledger.set_high_water(most);
  return ledger;
}

void add_resample(Plan& plan, const Params& p, const LayerClass& c, Dtype dtype, const History& h, double times) {
  for (const int dim : {c.k_dim, c.v_dim})
    plan.add(kernels::Resample{.heads = std::int64_t{h.sequences} * c.kv_heads, .from = p.span().value, .to = p.kept().value, .dim = dim, .dtype = dtype}
                 .call(times * c.count()));
}

Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  const CodeFormat plain = CodeFormat::plain(shape.dtype);
  for (const LayerClass& c : shape.classes) {
    add_append(plan, c, shape.dtype, h);
    const Tokens slots = p.mean_slots(h.tokens());
    plan.add(kernels::DecodeAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim,
                                      .v_dim = c.v_dim, .dtype = shape.dtype, .tokens = slots, .k_format = plain, .v_format = plain,
                                      .rotate_keys = true}
                 .call(c.count()));
    plan.add(kernels::SpanMerge{.rows = std::int64_t{h.sequences} * c.q_heads, .v_dim = c.v_dim, .dtype = shape.dtype, .tokens = slots}.call(c.count()));
    if (h.tokens() > p.capacity) add_resample(plan, p, c, shape.dtype, h, 1.0 / static_cast<double>(p.freed().value));
  }
  return plan;
}

/// The first `capacity` tokens attend to each other, every later group of freed() tokens to a full cache.
Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  const Tokens first = std::min(h.prompt, p.capacity);
  const double groups = h.prompt <= p.capacity ? 0.0 : static_cast<double>((h.prompt - p.capacity).value) / static_cast<double>(p.freed().value);
  for (const LayerClass& c : shape.classes) {
    kernels::PrefillAttention attention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim,
                                        .v_dim = c.v_dim, .dtype = shape.dtype, .chunk = first};
    plan.add(attention.call(c.count()));
    attention.past = p.capacity - p.freed();
    attention.chunk = p.freed();
    plan.add(attention.call(c.count() * groups));
    plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = shape.dtype,
                             .k_format = CodeFormat::plain(shape.dtype), .v_format = CodeFormat::plain(shape.dtype), .rows = h.prompt.value}
                 .call(c.count()));
    add_resample(plan, p, c, shape.dtype, h, static_cast<double>(p.compressions(h.prompt)));
  }
  return plan;
}

class Cache final : public KvCache {
 public:
  Cache(const Params& p, CacheShape shape) : p_(p), shape_(std::move(shape)), rotary_(shape_), layers_(make_layers()) {}

  void forward(int layer, const StepInput& step, View<float> out) override {
    const PreparedStep p = prepare_step(shape_, rotary_, layer, step, out);
    if (step.mask.kind == MaskKind::tree) throw Unsupported("freqkv: slot positions leave no room for a draft tree");
    Layer& l = at(layer);
    // Work up to the next full cache, compress, go on: where the caller cut the prompt plays no part.
    for (std::int64_t done = 0; done < p.n;) {
      if (l.keys->size() >= p_.capacity) compress(l);
      const std::int64_t n = std::min(p.n - done, (p_.capacity - l.keys->size()).value);
      l.keys->append(View<const float>(p.k_pre.view()).slice(1, done, n));
      l.values->append(View<const float>(p.v.view()).slice(1, done, n));
      attend(l, View<const float>(p.q_pre.view()).slice(1, done, n), step.mask, step.sinks, out.slice(1, done, n));
      done += n;
    }
  }

  std::vector<NamedBuffer> buffers() const override {
    std::vector<NamedBuffer> all;
    for (const Layer& l : layers_) {
      l.keys->buffers(cat("layer", l.index, "/k_"), all);
      l.values->buffers(cat("layer", l.index, "/v_"), all);
    }
    return all;
  }
  void load(std::span<const NamedBuffer> saved) override {
    std::vector<Layer> loaded = make_layers();
    for (const Layer& l : loaded) {
      l.keys->load(cat("layer", l.index, "/k_"), saved);
      l.values->load(cat("layer", l.index, "/v_"), saved);
      if (l.keys->size() != l.values->size() || l.keys->size() > p_.capacity)
        throw InvalidArgument(cat("layer ", l.index, " has ", l.keys->size().value, " keys and ", l.values->size().value,
                                  " values, must be as many and at most ", p_.capacity.value));
    }
    layers_ = std::move(loaded);
  }
  Tokens kept(int layer, int) const override { return const_cast<Cache*>(this)->at(layer).keys->size(); }

 private:
  struct Layer {
    int index;
    const LayerClass* c;
    std::unique_ptr<SideStore> keys, values;
  };
  std::vector<Layer> make_layers() const {
    std::vector<Layer> layers;
    for (const LayerClass& c : shape_.classes)
      for (const int l : c.layers)
        layers.push_back({l, &c, plain_store(c.kv_heads, c.k_dim, Side::key, shape_.dtype), plain_store(c.kv_heads, c.v_dim, Side::value, shape_.dtype)});
    return layers;
  }
  Layer& at(int layer) {
    for (Layer& l : layers_)
      if (l.index == layer) return l;
    throw InvalidArgument(cat("layer is ", layer, ", must be a layer that caches rows"));
  }

  /// The new queries are the last n slots; keys and queries rotate at their slots.
  void attend(const Layer& l, View<const float> q_pre, const AttentionMask& mask, View<const float> sinks, View<float> out) const {
    const LayerClass& c = *l.c;
    const std::int64_t slots = l.keys->size().value, n = q_pre.dim(1);
    std::vector<std::int64_t> positions(static_cast<std::size_t>(slots));
    for (std::int64_t s = 0; s < slots; ++s) positions[static_cast<std::size_t>(s)] = s;
    Array q({c.q_heads, n, c.k_dim});
    for (int h = 0; h < c.q_heads; ++h)
      for (std::int64_t i = 0; i < n; ++i) std::ranges::copy(q_pre.row(h, i), q.view().row(h, i).begin());
    const RopeTable& rope = rotary_.of(l.index);
    rope.apply(q.view(), std::span(positions).last(static_cast<std::size_t>(n)));
    round_all(shape_.dtype, q.values());
    parallel_for(c.kv_heads, [&](std::int64_t h) {
      Array k({1, slots, c.k_dim}), v({slots, c.v_dim});
      l.keys->read(static_cast<int>(h), 0, k.view()[0]);
      l.values->read(static_cast<int>(h), 0, v.view());
      rope.apply(k.view(), positions);
      round_all(shape_.dtype, k.values());
      attend_new(c, static_cast<int>(h), q.view(), k.view()[0], v.view(), mask, sinks, out);
    });
  }

  void compress(const Layer& l) {
    if (!low_pass_) low_pass_.emplace(p_.span(), p_.kept());  // a dense matrix: only for caches that fill
    for (SideStore* side : {l.keys.get(), l.values.get()}) {
      const int dim = side == l.keys.get() ? l.c->k_dim : l.c->v_dim;
      Array rows({l.c->kv_heads, p_.kept().value, dim});
      parallel_for(l.c->kv_heads, [&](std::int64_t h) {
        Array span({p_.span().value, dim});
        side->read(static_cast<int>(h), p_.sinks.value, span.view());
        low_pass_->apply(span.view(), rows.view()[h]);
      });
      round_all(shape_.dtype, rows.values());
      side->crop(p_.sinks);
      side->append(rows.view());
    }
  }

  Params p_;
  CacheShape shape_;
  Rotary rotary_;
  std::optional<LowPass> low_pass_;
  std::vector<Layer> layers_;
};

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs&) { return std::make_unique<Cache>(p, shape); }

}  // namespace

extern constinit const Method freqkv{
    .slug = "freqkv", .name = "FreqKV", .family = Family::transform,
    .paper = {.title = "FreqKV: Frequency Domain Key-Value Compression for Efficient Context Window Extension",
              .url = "https://arxiv.org/abs/2505.00570", .year = 2025},
    .params = specs<Params>,
    .serving = {.prefix_cache = {Works::no, "slots change whenever the cache fills; a stored prefix is valid only up to the capacity"},
                .paged_cache = {Works::partly, "a compression rewrites most pages of a sequence at once"},
                .cuda_graphs = {Works::partly, "the compression step is a graph of its own"},
                .speculation = {Works::no, "a compression cannot be taken back"}},
    .exact_when = "capacity=32768",
    .notes = "The paper fine-tunes the model for the compressed context; without that the method runs but quality is not the paper's. "
             "The official mask path adds 1 to the logits of old slots; that defect is not copied. Under a bidirectional mask a token sees "
             "the new tokens that come before the next compression, not all of the step.",
    .why_not = typed<why_not>, .needs_unrotated = always_unrotated, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods

// xkv: the prompt's keys and values of neighbouring layers share one low-rank factorisation, made when the prompt ends.
// Source    sheet xkv; Chang et al., arXiv 2503.18893, section 3; abdelfattah-lab/xKV, fake_layer_merge_dynamic_cache.py
// Keeps     per group of layers coefficients [prompt, rank] and a basis [rank, layers * channels] of keys before RoPE and of
//           values, in the dtype; generated tokens exact, keys after RoPE
// Deviates  stores the factors, which the released code only simulates; latent rows are refused
#include <algorithm>
#include <tuple>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/kernels/store.hpp"
#include "core/kernels/transform.hpp"
#include "core/parallel.hpp"
#include "reference/lowrank/xkv/factors.hpp"
#include "reference/method.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/side_cache.hpp"

namespace kvatlas::methods {
namespace {

using xkv_factors::Factors;

struct Params {
  int group_layers = 4;
  int rank_k = 512;
  int rank_v = 768;
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::group_layers, "group_layers", "layer", 1, 64, "consecutive layers that share a factorisation; the last group may be shorter"),
        field(&Params::rank_k, "rank_k", "element", 1, 16384, "rank of the keys of a group, at most prompt tokens and channels of the group"),
        field(&Params::rank_v, "rank_v", "element", 1, 16384, "rank of the values of a group")};
  }
};

int dim_of(const LayerClass& c, Side side) { return side == Side::key ? c.k_dim : c.v_dim; }

/// Sizes of one factorisation: `layers` layers of class c.
struct Factor {
  std::int64_t prompt = 0, cols = 0, rank = 0;
  Factor(const Params& p, const LayerClass& c, Side side, std::int64_t layers, std::int64_t tokens)
      : prompt(tokens), cols(layers * c.kv_heads * dim_of(c, side)),
        rank(std::min({std::int64_t{side == Side::key ? p.rank_k : p.rank_v}, tokens, cols})) {}
};

/// Calls body(first, layers) for the groups of a class: places in c.layers.
template <class F>
void for_groups(const Params& p, const LayerClass& c, const F& body) {
  for (int first = 0; first < c.count(); first += p.group_layers) body(first, std::min(p.group_layers, c.count() - first));
}

std::optional<std::string> why_not(const Params&, const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) return "layers must cache keys and values; other rows are not factorised across layers here";
    if (c.window.value > 0)
      return cat("a sliding window of ", c.window.value, " tokens drops rows that a factorisation of the prompt holds; use full for such layers");
  }
  return std::nullopt;
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger;
  Bytes prompt{0};
  for (const LayerClass& c : shape.classes) {
    for (const Side side : {Side::key, Side::value}) {
      for_groups(p, c, [&](int, int layers) {
        const Factor f(p, c, side, layers, h.prompt.value);
        const std::int64_t bytes = f.rank * h.sequences * bytes_of(shape.dtype);
        ledger.add("coefficients", side, Scope::token, Bytes(f.prompt * bytes));
        ledger.add("basis", side, Scope::sequence, Bytes(f.cols * bytes));
      });
      ledger.add("rows", side, Scope::token,
                 Bytes(h.generated.value * c.kv_heads * dim_of(c, side) * c.count() * h.sequences * bytes_of(shape.dtype)));
    }
    prompt += dense_rows(c, shape.dtype, h.prompt, h.sequences);
  }
  ledger.set_prefill(prompt);
  return ledger;
}

/// Every layer rebuilds its keys and values from the factors, rotates the keys and attends to them: three kernels, since
/// RoPE keeps the keys' basis out of the query. Coefficients are read once a layer.
Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan;
  for (const LayerClass& c : shape.classes) {
    add_append(plan, c, shape.dtype, h);
    for (const Side side : {Side::key, Side::value})
      for_groups(p, c, [&](int, int layers) {
        const Factor f(p, c, side, layers, h.prompt.value);
        plan.add(kernels::LowRank{.sequences = h.sequences, .rows = f.prompt, .rank = static_cast<int>(f.rank),
                                  .dim = std::int64_t{c.kv_heads} * dim_of(c, side), .dtype = shape.dtype, .keep = true}
                     .call(layers));
      });
    if (c.rope.rotary_dim > 0)
      plan.add(kernels::RopeApply{.heads = std::int64_t{h.sequences} * c.kv_heads, .rows = h.prompt.value, .dim = c.k_dim, .dtype = shape.dtype}.call(c.count()));
    add_decode_attention(plan, c, shape.dtype, h, h.tokens());
  }
  return plan;
}

Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan = dense_prefill_plan(shape, h);
  for (const LayerClass& c : shape.classes)
    for (const Side side : {Side::key, Side::value})
      for_groups(p, c, [&](int, int layers) {
        const Factor f(p, c, side, layers, h.prompt.value);
        plan.add(kernels::Factorize{.sequences = h.sequences, .rows = f.prompt, .cols = f.cols, .rank = static_cast<int>(f.rank), .dtype = shape.dtype}.call(1));
      });
  return plan;
}

/// The released code puts the rebuilt rows back into a dense cache.
Plan released_decode_plan(const Params&, const CacheShape& shape, const History& h, const ContentCounts&) { return dense_decode_plan(shape, h); }

class Cache final : public KvCache {
 public:
  Cache(const Params& p, CacheShape shape) : p_(p), shape_(std::move(shape)), rotary_(shape_) {
    for (const LayerClass& c : shape_.classes)
      for_groups(p_, c, [&](int first, int layers) {
        Group group{.c = &c, .layers = {}, .keys = {}, .values = {}};
        for (int i = first; i < first + layers; ++i)
          group.layers.push_back(make_layer(c, c.layers[static_cast<std::size_t>(i)]));
        groups_.push_back(std::move(group));
      });
  }

  void forward(int layer, const StepInput& step, View<float> out) override {
    const PreparedStep p = prepare_step(shape_, rotary_, layer, step, out);
    const std::pair<std::size_t, std::size_t> place = find(layer);
    const Group& group = groups_[place.first];
    const std::size_t at = place.second;
    const LayerClass& c = *group.c;
    const Layer& l = group.layers[at];
    if (prompt_ == 0) {
      for (std::int64_t i = 0; i < p.n; ++i)
        if (step.positions(i) != l.keys->size().value + i)
          throw Unsupported(cat("xkv: positions[", i, "] is ", step.positions(i), ", prompt positions must be 0, 1, 2, ... as the prompt keeps none (",
                                l.keys->size().value + i, " is next)"));
    } else if (step.positions(0) < prompt_) {
      throw InvalidArgument(cat("positions[0] is ", step.positions(0), ", must be behind the prompt (", prompt_, " tokens)"));
    }
    l.keys->append(prompt_ == 0 ? p.k_pre.view() : p.k.view());
    l.values->append(p.v.view());
    parallel_for(c.kv_heads, [&](std::int64_t h) {
      const Array k = read(group, at, Side::key, static_cast<int>(h)), v = read(group, at, Side::value, static_cast<int>(h));
      attend_new(c, static_cast<int>(h), p.q.view(), k.view(), v.view(), step.mask, step.sinks, out);
    });
  }

  void end_prefill() override {
    if (prompt_ > 0) return;
    const std::int64_t prompt = groups_.front().layers.front().keys->size().value;
    for (const Group& g : groups_)
      for (const Layer& l : g.layers)
        if (l.keys->size().value != prompt)
          throw InvalidArgument(cat("layer ", l.index, " has ", l.keys->size().value, " tokens, must have as many as the first layer (", prompt, ")"));
    if (prompt == 0) return;
    std::vector<Factors> made(2 * groups_.size());
    parallel_for(static_cast<std::int64_t>(made.size()), [&](std::int64_t i) {
      const Group& g = groups_[static_cast<std::size_t>(i / 2)];
      const Side side = i % 2 == 0 ? Side::key : Side::value;
      const Factor f = factor(g, side, prompt);
      const int dim = dim_of(*g.c, side);
      Array rows({f.prompt, f.cols});  // layer after layer, head after head
      for (std::size_t l = 0; l < g.layers.size(); ++l)
        for (int h = 0; h < g.c->kv_heads; ++h)
          g.layers[l].of(side).read(h, 0, rows.view().slice(1, (static_cast<std::int64_t>(l) * g.c->kv_heads + h) * dim, dim));
      const RandomStream start{.layer = static_cast<std::uint32_t>(g.layers[0].index), .head = static_cast<std::uint32_t>(i % 2)};
      made[static_cast<std::size_t>(i)] = xkv_factors::factorize(rows.view(), f.rank, shape_.dtype, start);
    });
    for (std::size_t i = 0; i < made.size(); ++i) (i % 2 == 0 ? groups_[i / 2].keys : groups_[i / 2].values) = std::move(made[i]);
    for (const Group& g : groups_)
      for (const Layer& l : g.layers)
        for (const Side side : {Side::key, Side::value}) l.of(side).crop(Tokens(0));
    prompt_ = prompt;
  }

  void check_crop(Tokens length) const override {
    if (length.value < 0) throw InvalidArgument(cat("length is ", length.value, ", must be >= 0"));
    if (length.value < prompt_) throw Unsupported(cat("xkv: crop to ", length.value, " tokens would cut into the factorised prompt (", prompt_, ")"));
  }

  void crop(Tokens length) override {
    check_crop(length);
    for (const Group& g : groups_)
      for (const Layer& l : g.layers)
        for (const Side side : {Side::key, Side::value}) l.of(side).crop(Tokens(length.value - prompt_));
  }

  std::vector<NamedBuffer> buffers() const override {
    std::vector<NamedBuffer> all;
    for (const Group& g : groups_) {
      for (const Side side : {Side::key, Side::value}) {
        if (prompt_ == 0) continue;
        all.push_back({.name = name(g, side, "coefficients"), .component = "coefficients", .side = side, .scope = Scope::token, .bytes = g.of(side).coefficients});
        all.push_back({.name = name(g, side, "basis"), .component = "basis", .side = side, .scope = Scope::sequence, .bytes = g.of(side).basis});
      }
      for (const Layer& l : g.layers) {
        l.keys->buffers(cat("layer", l.index, "/k_"), all);
        l.values->buffers(cat("layer", l.index, "/v_"), all);
      }
    }
    return all;
  }

  void load(std::span<const NamedBuffer> saved) override {
    const std::string first = name(groups_.front(), Side::key, "basis");
    const bool ended = std::ranges::any_of(saved, [&](const NamedBuffer& b) { return b.name == first; });
    std::vector<Factors> loaded;
    std::int64_t prompt = 0;
    for (const Group& g : groups_)
      for (const Side side : {Side::key, Side::value}) {
        if (!ended) continue;
        Factors f{find_buffer(saved, name(g, side, "coefficients")).bytes, find_buffer(saved, name(g, side, "basis")).bytes};
        if (loaded.empty()) prompt = prompt_of(g, f);
        const Factor size = factor(g, side, prompt);
        const auto sizes = {std::tuple{"coefficients", &f.coefficients, size.prompt * size.rank},
                            std::tuple{"basis", &f.basis, size.cols * size.rank}};
        for (const auto& [what, bytes, values] : sizes)
          if (static_cast<std::int64_t>(bytes->size()) != values * bytes_of(shape_.dtype))
            throw InvalidArgument(cat("buffer ", name(g, side, what), " has ", bytes->size(), " bytes, must be ",
                                      values * bytes_of(shape_.dtype), " for a prompt of ", prompt, " tokens"));
        loaded.push_back(std::move(f));
      }
    for (std::size_t i = 0; i < loaded.size(); ++i)
      for (const auto* bytes : {&loaded[i].coefficients, &loaded[i].basis}) {
        std::vector<float> values(bytes->size() / static_cast<std::size_t>(bytes_of(shape_.dtype)));
        num::load(shape_.dtype, *bytes, values);
        if (!std::ranges::all_of(values, num::is_finite)) throw InvalidArgument("a saved factor is not finite");
      }
    std::vector<Group> groups;
    for (const Group& g : groups_) {
      groups.push_back({.c = g.c, .layers = {}, .keys = {}, .values = {}});
      for (const Layer& old : g.layers) {
        const Layer& l = groups.back().layers.emplace_back(make_layer(*g.c, old.index));
        l.keys->load(cat("layer", l.index, "/k_"), saved);
        l.values->load(cat("layer", l.index, "/v_"), saved);
        if (l.keys->size() != l.values->size())
          throw InvalidArgument(cat("layer ", l.index, " has ", l.keys->size().value, " keys and ", l.values->size().value, " values, must be as many"));
      }
    }
    for (std::size_t i = 0; i < loaded.size(); ++i) (i % 2 == 0 ? groups[i / 2].keys : groups[i / 2].values) = std::move(loaded[i]);
    groups_ = std::move(groups);
    prompt_ = prompt;
  }

  Tokens kept(int layer, int) const override {
    const auto [g, at] = find(layer);
    return Tokens(prompt_) + groups_[g].layers[at].keys->size();
  }

 private:
  struct Layer {
    int index;
    std::unique_ptr<SideStore> keys, values;  // the prompt (keys before RoPE) until it ends, then generated tokens
    SideStore& of(Side side) const { return side == Side::key ? *keys : *values; }
  };
  struct Group {
    const LayerClass* c;
    std::vector<Layer> layers;
    Factors keys, values;
    const Factors& of(Side side) const { return side == Side::key ? keys : values; }
  };

  Layer make_layer(const LayerClass& c, int index) const {
    return {index, plain_store(c.kv_heads, c.k_dim, Side::key, shape_.dtype), plain_store(c.kv_heads, c.v_dim, Side::value, shape_.dtype)};
  }
  Factor factor(const Group& g, Side side, std::int64_t prompt) const { return {p_, *g.c, side, static_cast<std::int64_t>(g.layers.size()), prompt}; }
  static std::string name(const Group& g, Side side, const char* what) { return cat("group", g.layers.front().index, side == Side::key ? "/k_" : "/v_", what); }

  /// Tokens behind saved key factors: the basis tells the rank, the coefficients then the tokens.
  std::int64_t prompt_of(const Group& g, const Factors& f) const {
    const std::int64_t cols = static_cast<std::int64_t>(g.layers.size()) * g.c->kv_heads * g.c->k_dim;
    const std::int64_t rank = static_cast<std::int64_t>(f.basis.size()) / (cols * bytes_of(shape_.dtype));
    const std::int64_t prompt = rank < 1 ? 0 : static_cast<std::int64_t>(f.coefficients.size()) / (rank * bytes_of(shape_.dtype));
    if (prompt < 1) throw InvalidArgument(cat("buffer ", name(g, Side::key, "basis"), " has ", f.basis.size(), " bytes, must be whole rows of ", cols, " values"));
    return prompt;
  }
  std::pair<std::size_t, std::size_t> find(int layer) const {
    for (std::size_t g = 0; g < groups_.size(); ++g)
      for (std::size_t l = 0; l < groups_[g].layers.size(); ++l)
        if (groups_[g].layers[l].index == layer) return {g, l};
    throw InvalidArgument(cat("layer is ", layer, ", must be a layer that caches rows"));
  }

  /// All tokens of one head: prompt rows, rebuilt and (keys) rotated at 0, 1, 2, ..., then generated ones.
  Array read(const Group& g, std::size_t at, Side side, int head) const {
    const Layer& l = g.layers[at];
    const int dim = dim_of(*g.c, side);
    const std::int64_t exact = l.of(side).size().value;
    const bool open = prompt_ == 0;  // then the exact rows are the prompt
    Array rows({prompt_ + exact, dim});
    l.of(side).read(head, 0, rows.view().slice(0, prompt_, exact));
    const View<float> prompt = rows.view().slice(0, 0, open ? exact : prompt_);
    if (!open) xkv_factors::rebuild(g.of(side), factor(g, side, prompt_).rank, shape_.dtype, (static_cast<std::int64_t>(at) * g.c->kv_heads + head) * dim, prompt);
    if (side == Side::key && g.c->rope.rotary_dim > 0) {
      const RopeTable& rope = rotary_.of(l.index);
      for (std::int64_t t = 0; t < prompt.dim(0); ++t) {
        rope.apply(prompt.row(t), t);
        round_all(shape_.dtype, prompt.row(t));
      }
    }
    return rows;
  }

  Params p_;
  CacheShape shape_;
  Rotary rotary_;
  std::vector<Group> groups_;
  std::int64_t prompt_ = 0;  // factorised tokens; 0 while the prompt runs
};

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs&) { return std::make_unique<Cache>(p, shape); }

}  // namespace

extern constinit const Method xkv{
    .slug = "xkv", .name = "xKV", .family = Family::lowrank,
    .paper = {.title = "xKV: Cross-Layer SVD for KV-Cache Compression", .url = "https://arxiv.org/abs/2503.18893", .year = 2025},
    .params = specs<Params>,
    .serving = {.prefix_cache = {Works::partly, "factors belong to one whole prompt; a prompt that continues it needs dense rows and factors of its own"},
                .paged_cache = {Works::partly, "coefficients lie in pages by token, a basis is one block of a group of layers"},
                .chunked_prefill = {Works::yes, "factors are made when the last chunk is in; until then the prompt is dense"},
                .tensor_parallelism = {Works::partly, "the factorisation spans all heads of a group: ranks gather them, or factor their own with other results"},
                .multi_turn = {Works::partly, "tokens after the first prompt stay exact and dense"}},
    .notes = "The released code simulates: it replaces the dense cache by the product of the factors, so its steps read dense rows "
             "(the released plan). Here the factors are stored and every step rebuilds keys and values, which costs more than it saves in "
             "traffic: the gain is memory. Values could be kept unbuilt by folding their basis behind the softmax; no kernel of this library does. "
             "A prompt shorter than the rank gets larger, not smaller. Factorisations whose smaller side is at most 256 are a full SVD "
             "by one-sided Jacobi, larger ones block subspace iteration with 8 passes. Latent rows (MLA), which the paper factorises too, are refused.",
    .why_not = typed<why_not>, .needs_unrotated = always_unrotated, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .released_decode_plan = typed<released_decode_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods

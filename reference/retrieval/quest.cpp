// quest: the whole cache stays, every page keeps the channel-wise maximum and minimum of its keys, and a decode step
// attends only the pages whose bound of q.k is highest.
// Source    sheet quest; Tang et al., arXiv 2406.10774, section 3.3 and algorithm 1; mit-han-lab/Quest
// Keeps     every token; keys after RoPE, in the cache's dtype; two bounds a page, kv head and sparse layer beside them
// Deviates  scores stay float32 (the released kernel rounds them to fp16); layers below dense_layers store no bounds (the
//           released pool has a slot for them); grouped queries may share one choice of pages (select)
#include <algorithm>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/kernels/attention.hpp"
#include "core/kernels/select.hpp"
#include "core/kernels/store.hpp"
#include "core/parallel.hpp"
#include "reference/method.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/side_cache.hpp"
#include "reference/primitives/sparse_attention.hpp"
#include "reference/retrieval/quest/pages.hpp"

namespace kvatlas::methods {
namespace {

using quest::LastPage;
using quest::Select;
constexpr std::array<std::string_view, 2> kLastPage{"system", "python"};
constexpr std::array<std::string_view, 3> kSelect{"per_q_head", "per_kv_head_mean", "per_kv_head_max"};

struct Params {
  Tokens page{16};
  Tokens budget{2048};
  int dense_layers = 2;
  LastPage last_page = LastPage::system;
  Select select = Select::per_q_head;
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::page, "page", "token", 1, 256, "tokens of one page"),
        field(&Params::budget, "budget", "token", 1, 1 << 24, "tokens attended in a decode step; whole pages of them"),
        field(&Params::dense_layers, "dense_layers", "layer", 0, 4, "first layers of the model that attend to everything"),
        choice(&Params::last_page, "last_page", kLastPage,
               "system: the open page is always attended and never scored; python: it is scored like the others, at least three pages"),
        choice(&Params::select, "select", kSelect, "pages chosen by each query head, or once a kv head by the mean or maximum score")};
  }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.last_page == LastPage::system && p.budget < p.page)
    return cat("budget is ", p.budget.value, ", must be at least one page (", p.page.value, ")");
  return why_not_listed(shape);
}

/// Pages of a context, and those of them that one query attends.
std::int64_t pages_of(const Params& p, Tokens context) { return ceil_div(context.value, p.page.value); }
std::int64_t capacity_of(const Params& p) { return quest::page_capacity(p.last_page, p.budget.value, p.page.value); }

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger = dense_ledger(shape, h);
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    const int sparse = c.count() - layers_below(c, p.dense_layers);
    const Bytes bound(pages_of(p, h.tokens()) * c.kv_heads * c.k_dim * bytes_of(shape.dtype) * sparse * h.sequences);
    ledger.add("page_max", Side::key, Scope::page, bound);
    ledger.add("page_min", Side::key, Scope::page, bound);
  }
  return ledger;
}

/// Bounds are scored for every page, then whole pages are attended. With choices per query head a kv head loads the union
/// of its group's pages: expected_union, between one and q_per_kv times the budget.
void add_sparse_step(Plan& plan, const Params& p, const LayerClass& c, Dtype dtype, const History& h) {
  const std::int64_t pages = pages_of(p, h.tokens());
  const std::int64_t kept = std::min(capacity_of(p), pages);
  const bool open_page = p.last_page == LastPage::system;  // attended unscored
  const bool per_q = p.select == Select::per_q_head;
  const std::int64_t rows = std::int64_t{h.sequences} * (per_q ? c.q_heads : c.kv_heads);
  const Tokens attended = std::min(p.page * kept, h.tokens());
  const Tokens loaded = per_q ? expected_union(attended, h.tokens(), c.q_per_kv()) : attended;
  const double launches = c.count() + static_cast<double>(c.readers.size());
  const CodeFormat plain = CodeFormat::plain(dtype);
  // The new key is folded into its page's bounds by the kernel that appends it: two more vectors read and written.
  plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = 3 * c.k_dim, .v_dim = c.v_dim, .dtype = dtype,
                           .k_format = plain, .v_format = plain}
               .call(c.count()));
  plan.add(kernels::PageScore{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim,
                              .dtype = dtype, .pages = open_page ? pages - 1 : pages}
               .call(launches));
  plan.add(kernels::TopK{.rows = rows, .candidates = open_page ? pages - 1 : pages, .k = open_page ? kept - 1 : kept}.call(launches));
  plan.add(kernels::DecodeAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim,
                                    .v_dim = c.v_dim, .dtype = dtype, .tokens = loaded, .k_format = plain, .v_format = plain,
                                    .run = p.page}
               .call(launches));
  plan.add(kernels::SpanMerge{.rows = std::int64_t{h.sequences} * c.q_heads, .v_dim = c.v_dim, .dtype = dtype, .tokens = loaded}
               .call(launches));
}

Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  if (pages_of(p, h.tokens()) <= capacity_of(p)) return dense_decode_plan(shape, h);
  Plan plan;
  for (const LayerClass& c : shape.classes) {
    if (add_state_step(plan, c, h)) continue;
    LayerClass dense = c;
    std::erase_if(dense.layers, [&](int l) { return l >= p.dense_layers; });
    std::erase_if(dense.readers, [&](int l) { return l >= p.dense_layers; });
    add_append(plan, dense, shape.dtype, h);
    add_decode_attention(plan, dense, shape.dtype, h, h.tokens());
    add_sparse_step(plan, p, layers_from(c, p.dense_layers), shape.dtype, h);
  }
  return plan;
}

/// Dense prompt attention; the pages' bounds are written from keys that the append holds in registers.
Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan = dense_prefill_plan(shape, h);
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    const CodeFormat plain = CodeFormat::plain(shape.dtype);
    plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim, .v_dim = c.k_dim, .dtype = shape.dtype,
                             .k_format = plain, .v_format = plain, .rows = pages_of(p, h.prompt)}
                 .call(h.prompt.value > 0 ? layers_from(c, p.dense_layers).count() : 0));
  }
  return plan;
}

RowStore::Codec bound_codec(const char* component, int dim, Dtype dtype) {
  return {.component = component, .row_bytes = std::int64_t{dim} * bytes_of(dtype),
          .encode = [dtype, dim](std::span<const float> row, std::span<std::byte> to) {
            num::store(dtype, row, to.first(static_cast<std::size_t>(dim * bytes_of(dtype))));
          },
          .decode = [dtype](std::span<const std::byte> from, std::span<float> row) { num::load(dtype, from, row); }};
}

class Cache final : public KvCache {
 public:
  Cache(const Params& p, CacheShape shape) : p_(p), shape_(std::move(shape)), rotary_(shape_) {
    for (const LayerClass& c : shape_.classes)
      for (const int l : c.layers) {
        if (c.kind != RowKind::kv) continue;
        layers_.push_back({.index = l, .c = &c, .keys = plain_store(c.kv_heads, c.k_dim, Side::key, shape_.dtype),
                           .values = plain_store(c.kv_heads, c.v_dim, Side::value, shape_.dtype), .max = nullptr, .min = nullptr});
        if (l < p_.dense_layers) continue;
        layers_.back().max = std::make_unique<RowStore>(c.kv_heads, c.k_dim, Side::key, bound_codec("page_max", c.k_dim, shape_.dtype));
        layers_.back().min = std::make_unique<RowStore>(c.kv_heads, c.k_dim, Side::key, bound_codec("page_min", c.k_dim, shape_.dtype));
      }
  }

  void forward(int layer, const StepInput& step, View<float> out) override {
    const PreparedStep s = prepare_step(shape_, rotary_, layer, step, out);
    const Layer& l = at(layer);
    const std::int64_t old = l.keys->size().value;
    l.keys->append(s.k.view());
    l.values->append(s.v.view());
    rebuild_bounds(l, old / p_.page.value);
    try {
      parallel_for(l.c->kv_heads, [&](std::int64_t head) { attend(l, static_cast<int>(head), old, s, step, out); });
    } catch (...) {  // bounds of huge keys may add up to NaN, which no selection accepts
      take_back(l, old);
      throw;
    }
  }

  void end_prefill() override { prompt_done_ = true; }

  void check_crop(Tokens length) const override {
    if (length.value < 0) throw InvalidArgument(cat("length is ", length.value, ", must be >= 0"));
  }

  void crop(Tokens length) override {
    check_crop(length);
    for (const Layer& l : layers_)
      if (l.keys->size() > length) take_back(l, length.value);
  }

  std::vector<NamedBuffer> buffers() const override {
    std::vector<NamedBuffer> all;
    for (const Layer& l : layers_) {
      l.keys->buffers(cat("layer", l.index, "/k_"), all);
      l.values->buffers(cat("layer", l.index, "/v_"), all);
      for (const auto& [bounds, component] : {std::pair{l.max.get(), "page_max"}, std::pair{l.min.get(), "page_min"}}) {
        if (bounds == nullptr) continue;
        const std::size_t first = all.size();
        bounds->buffers(cat("layer", l.index, "/"), all);
        for (std::size_t i = first; i < all.size(); ++i) {
          all[i].component = component;
          all[i].scope = Scope::page;
        }
      }
    }
    return all;
  }

  /// Bounds that are not those of the keys would hide pages silently, so they are refused.
  void load(std::span<const NamedBuffer> saved) override {
    Cache fresh(p_, shape_);
    for (const Layer& l : fresh.layers_) {
      l.keys->load(cat("layer", l.index, "/k_"), saved);
      l.values->load(cat("layer", l.index, "/v_"), saved);
      if (l.values->size() != l.keys->size())
        throw InvalidArgument(cat("layer", l.index, " has ", l.keys->size().value, " keys and ", l.values->size().value, " values, must be as many"));
      fresh.rebuild_bounds(l, 0);
    }
    for (const NamedBuffer& b : fresh.buffers())
      if (find_buffer(saved, b.name).bytes != b.bytes)
        throw InvalidArgument(cat("buffer ", b.name, " does not hold the bounds of its pages' keys"));
    layers_ = std::move(fresh.layers_);
    for (Layer& l : layers_) l.c = &shape_.class_of(l.index);
    prompt_done_ = true;
  }

  Tokens kept(int layer, int) const override { return at(layer).keys->size(); }

 private:
  struct Layer {
    int index = 0;
    const LayerClass* c = nullptr;
    std::unique_ptr<SideStore> keys, values;
    std::unique_ptr<RowStore> max, min;  // one row a page; none in dense layers
  };
  const Layer& at(int layer) const {
    for (const Layer& l : layers_)
      if (l.index == layer) return l;
    throw InvalidArgument(cat("layer is ", layer, ", must be a layer that caches rows"));
  }

  /// Bounds of all pages from `first` on, from the keys: the open page is kept up to date with every token.
  void rebuild_bounds(const Layer& l, std::int64_t first) const {
    if (!l.max) return;
    const std::int64_t page = p_.page.value, rows = l.keys->size().value, pages = ceil_div(rows, page);
    l.max->crop(Tokens(first));
    l.min->crop(Tokens(first));
    if (pages <= first) return;
    Array max({l.c->kv_heads, pages - first, l.c->k_dim}), min = max, k({rows - first * page, l.c->k_dim});
    for (int head = 0; head < l.c->kv_heads; ++head) {
      l.keys->read(head, first * page, k.view());
      for (std::int64_t j = 0; j < pages - first; ++j) {
        const quest::Bounds b = quest::bounds_of(k.view(), with_tail({}, j * page, std::min((j + 1) * page, k.view().dim(0))));
        std::ranges::copy(b.max, max.view().row(head, j).begin());
        std::ranges::copy(b.min, min.view().row(head, j).begin());
      }
    }
    l.max->append(max.view());
    l.min->append(min.view());
  }

  void take_back(const Layer& l, std::int64_t length) const {
    l.keys->crop(Tokens(length));
    l.values->crop(Tokens(length));
    rebuild_bounds(l, length / p_.page.value);
  }

  void attend(const Layer& l, int head, std::int64_t old, const PreparedStep& s, const StepInput& step, View<float> out) const {
    const LayerClass& c = *l.c;
    const std::int64_t rows = l.keys->size().value;
    Array k({rows, c.k_dim}), v({rows, c.v_dim});
    l.keys->read(head, 0, k.view());
    l.values->read(head, 0, v.view());
    if (!prompt_done_ || !l.max) {
      attend_new(c, head, s.q.view(), k.view(), v.view(), step.mask, step.sinks, out);
      return;
    }
    for (std::int64_t i = 0; i < s.n; ++i) {
      // What query i sees decides: a drafted token gets the pages that it would get as a step of its own.
      const Slots seen = seen_rows(step.mask, old, s.n, i);
      std::vector<Slots> chosen(static_cast<std::size_t>(c.q_per_kv()), seen);
      const std::vector<Page> pages = split(seen);
      if (static_cast<std::int64_t>(pages.size()) > capacity_of(p_)) select(l, head, i, s, k.view(), pages, chosen);
      for (int g = 0; g < c.q_per_kv(); ++g) {
        const int q_head = head * c.q_per_kv() + g;
        attend_listed(c, s.q.view().row(q_head, i), k.view(), v.view(), chosen[static_cast<std::size_t>(g)], sink_of(c, step, q_head),
                      out.row(q_head, i));
      }
    }
  }

  /// The rows of one page that a query sees.
  struct Page {
    std::int64_t index = 0;
    Slots rows;
  };
  std::vector<Page> split(const Slots& seen) const {
    std::vector<Page> pages;
    for (const std::int64_t t : seen) {
      if (pages.empty() || pages.back().index != t / p_.page.value) pages.push_back({.index = t / p_.page.value, .rows = {}});
      pages.back().rows.push_back(t);
    }
    return pages;
  }

  /// Fills the chosen rows of each query head of the group.
  void select(const Layer& l, int head, std::int64_t query, const PreparedStep& s, View<const float> k, const std::vector<Page>& pages,
              std::vector<Slots>& chosen) const {
    std::vector<std::vector<float>> scores(chosen.size());
    Array max({1, l.c->k_dim}), min({1, l.c->k_dim});
    for (const Page& page : pages) {
      const std::int64_t stored = std::min((page.index + 1) * p_.page.value, k.dim(0)) - page.index * p_.page.value;
      if (static_cast<std::int64_t>(page.rows.size()) == stored) {
        l.max->read(head, page.index, max.view());
        l.min->read(head, page.index, min.view());
      } else {  // a page that holds drafted tokens which this query does not see
        const quest::Bounds b = quest::bounds_of(k, page.rows);
        max.values() = b.max;
        min.values() = b.min;
      }
      for (std::size_t g = 0; g < scores.size(); ++g)
        scores[g].push_back(quest::page_score(s.q.view().row(head * l.c->q_per_kv() + static_cast<int>(g), query), max.values(), min.values()));
    }
    if (p_.select != Select::per_q_head) scores.assign(scores.size(), quest::reduce_scores(p_.select, scores));
    for (std::size_t g = 0; g < scores.size(); ++g) {
      chosen[g].clear();
      for (const std::int64_t j : quest::choose_pages(p_.last_page, scores[g], capacity_of(p_)))
        chosen[g].insert(chosen[g].end(), pages[static_cast<std::size_t>(j)].rows.begin(), pages[static_cast<std::size_t>(j)].rows.end());
    }
  }

  Params p_;
  CacheShape shape_;
  Rotary rotary_;
  std::vector<Layer> layers_;
  bool prompt_done_ = false;
};

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs&) {
  if (const auto reason = why_not(p, shape)) throw Unsupported(cat("quest: ", *reason));
  return std::make_unique<Cache>(p, shape);
}

}  // namespace

extern constinit const Method quest{
    .slug = "quest", .name = "Quest", .family = Family::retrieval,
    .paper = {.title = "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", .url = "https://arxiv.org/abs/2406.10774", .year = 2024},
    .params = specs<Params>,
    .serving = {.cuda_graphs = {Works::partly, "the list of pages changes every step, its length does not once the context passes the budget"},
                .speculation = {Works::yes, "drafted tokens select for themselves; a rollback rebuilds the bounds of the pages it opens"},
                .multi_turn = {Works::partly, "the prompt of a later turn is attended sparsely too"}},
    .exact_when = "budget=1048576",
    .notes = "Scores are float32 in the order of q.k; the released kernel rounds them to fp16 and so meets more ties. The released pool "
             "keeps bounds for the dense first layers as well; here such layers store none. The two released paths differ in the last "
             "page: last_page=system attends it unscored, last_page=python scores it and takes at least three pages. Released kernels "
             "need as many kv heads as query heads; under grouped queries each query head chooses (the Python path), and a plan charges "
             "the expected union of its group's pages under independent choices, at most q_per_kv times the budget, or select shares one choice. "
             "A cache saved inside a prompt resumes as if the prompt had ended.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods

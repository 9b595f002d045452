// think: key channels leave, not tokens: of the prompt's older keys each head keeps the channels in which queries and keys are large.
// Source    sheet part 3.2, think; Xu et al. 2024; KVCache-Factory pyramidkv_utils.py (key_pruner_query_driven); kvpress think_press.py
// Keeps     every token; keys after RoPE, those of the prompt but its newest recent_window without the pruned channels, one bit a channel
//           and head; generated keys and all values whole
// Deviates  one choice for each kv head, over the mean of its query heads, as in kvpress
#include <algorithm>
#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/kernels/select.hpp"
#include "core/kernels/store.hpp"
#include "reference/method.hpp"
#include "reference/primitives/selection.hpp"
#include "reference/primitives/side_method.hpp"
#include "reference/primitives/window_scores.hpp"

namespace kvatlas::methods {
namespace {

struct Params {
  double ratio = 0.4;
  Tokens observation_window{32};
  Tokens recent_window{32};
  static constexpr auto fields() {
    return std::tuple{field(&Params::ratio, "ratio", "", 0, 0.95, "share of a head's key channels that is pruned, rounded down"),
                      field(&Params::observation_window, "observation_window", "token", 1, 4096, "last prompt queries that score the channels"),
                      field(&Params::recent_window, "recent_window", "token", 0, 1 << 20, "newest keys of the prompt that stay whole")};
  }
  int kept_channels(int dim) const { return dim - static_cast<int>(static_cast<double>(dim) * ratio); }
  std::int64_t pruned_rows(Tokens prompt) const { return std::max<std::int64_t>(0, (prompt - recent_window).value); }
};

std::optional<std::string> why_not(const Params&, const CacheShape& shape) { return why_not_sides("think", shape, kWholeRows); }

/// Mean square of the window's queries, over the heads of the group, times the mean square of the keys. Sums in float64, heads, then rows.
std::vector<float> channel_scores(View<const float> queries, View<const float> keys) {
  std::vector<float> scores;
  for (std::int64_t c = 0; c < keys.dim(1); ++c) {
    double q = 0, k = 0;
    for (std::int64_t h = 0; h < queries.dim(0); ++h)
      for (std::int64_t i = 0; i < queries.dim(1); ++i) q += static_cast<double>(queries(h, i, c)) * static_cast<double>(queries(h, i, c));
    for (std::int64_t i = 0; i < keys.dim(0); ++i) k += static_cast<double>(keys(i, c)) * static_cast<double>(keys(i, c));
    scores.push_back(static_cast<float>(q / static_cast<double>(queries.dim(0) * queries.dim(1)) * (k / static_cast<double>(keys.dim(0)))));
  }
  return scores;
}

/// Keys of one layer: thin rows of the prompt, then whole ones.
class Keys final : public SideStore {
 public:
  Keys(const Params& p, const LayerClass& c, Dtype dtype)
      : p_(p), c_(c), dtype_(dtype), rope_(c.rope), queries_(c.q_heads, c.k_dim, dtype, p.observation_window.value), rows_(whole_rows()),
        heads_(static_cast<std::size_t>(c.kv_heads)) {}

  void observe(const StepInput& step) override {
    if (prompt_done_) return;
    Array q({step.q.dim(0), step.q.dim(1), step.q.dim(2)});
    for (std::int64_t h = 0; h < step.q.dim(0); ++h)
      for (std::int64_t i = 0; i < step.q.dim(1); ++i) std::ranges::copy(step.q.row(h, i), q.view().row(h, i).begin());
    round_all(dtype_, q.values());
    if (c_.rope.rotary_dim > 0) {
      rope_.apply(q.view(), {step.positions.data(), static_cast<std::size_t>(step.positions.size())});
      round_all(dtype_, q.values());
    }
    queries_.append(q.view());
  }
  void append(View<const float> rows) override { rows_->append(rows); }
  void settle(bool prompt_done) override {
    if (prompt_done && !prompt_done_) prune();
    prompt_done_ = prompt_done_ || prompt_done;
  }
  Tokens size() const override { return Tokens(thin()) + rows_->size(); }

  void read(int kv_head, std::int64_t first, View<float> out) const override {
    const Head& head = heads_[static_cast<std::size_t>(kv_head)];
    const std::int64_t end = first + out.dim(0), thin_end = std::min(end, thin());
    std::vector<float> few(head.channels.size());
    for (std::int64_t i = first; i < thin_end; ++i) {
      const auto row = out.row(i - first);
      num::load(dtype_, std::span(head.rows).subspan(static_cast<std::size_t>(i) * row_bytes(), row_bytes()), few);
      std::ranges::fill(row, 0.0F);
      for (std::size_t c = 0; c < few.size(); ++c) row[static_cast<std::size_t>(head.channels[c])] = few[c];
    }
    const std::int64_t from = std::max(first, thin());
    if (from < end) rows_->read(kv_head, from - thin(), out.slice(0, from - first, end - from));
  }
  void check_crop(Tokens length) const override {
    if (!prompt_done_) throw Unsupported("crop: the queries that score channels would be taken back");
    if (length < Tokens(thin())) throw Unsupported(cat("crop to ", length.value, " tokens would take back keys whose channels are pruned: ", thin(), " are"));
  }
  void crop(Tokens length) override {
    check_crop(length);
    rows_->crop(length - Tokens(thin()));
  }

  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override {
    rows_->buffers(prefix, out);
    queries_.buffers(prefix + "window_queries", out);
    if (!prompt_done_) return;
    for (std::size_t h = 0; h < heads_.size(); ++h) {
      std::vector<std::byte> bits(static_cast<std::size_t>(ceil_div(c_.k_dim, 8)));
      for (const std::int64_t c : heads_[h].channels) bits[static_cast<std::size_t>(c / 8)] |= static_cast<std::byte>(1U << (c % 8));
      const auto add = [&](const char* component, Scope scope, std::vector<std::byte> bytes) {
        out.push_back({.name = cat(prefix, component, "/head", h), .component = component, .side = Side::key, .scope = scope, .bytes = std::move(bytes)});
      };
      add("thin_rows", Scope::token, heads_[h].rows);
      add("channels", Scope::head, heads_[h].channels.empty() ? std::vector<std::byte>{} : std::move(bits));
    }
  }
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override {
    auto rows = whole_rows();
    rows->load(prefix, saved);
    std::vector<Head> heads(heads_.size());
    for (std::size_t h = 0; h < heads.size(); ++h) {
      const NamedBuffer &thin = find_buffer(saved, cat(prefix, "thin_rows/head", h)), &bits = find_buffer(saved, cat(prefix, "channels/head", h));
      for (std::int64_t c = 0; c < static_cast<std::int64_t>(bits.bytes.size()) * 8; ++c)
        if ((std::to_integer<unsigned>(bits.bytes[static_cast<std::size_t>(c / 8)]) >> (c % 8) & 1U) != 0) heads[h].channels.push_back(c);
      heads[h].rows = thin.bytes;
      const auto kept = static_cast<std::size_t>(p_.kept_channels(c_.k_dim));
      const bool none = bits.bytes.empty() && thin.bytes.empty();
      const bool good = static_cast<std::int64_t>(bits.bytes.size()) == ceil_div(c_.k_dim, 8) && heads[h].channels.size() == kept && heads[h].channels.back() < c_.k_dim;
      if ((!none && !good) || thin.bytes.size() % row_bytes() != 0 || thin.bytes.size() != heads.front().rows.size())
        throw InvalidArgument(cat("buffers ", prefix, "channels/head", h, " and thin_rows/head", h, " must name ", kept, " of ", c_.k_dim,
                                  " channels and hold whole rows of them, as many in every head"));
    }
    rows_ = std::move(rows);
    heads_ = std::move(heads);
    queries_.clear();
    prompt_done_ = true;
  }

 private:
  struct Head {
    Slots channels;               // ascending
    std::vector<std::byte> rows;  // of these channels alone
  };
  std::unique_ptr<SideStore> whole_rows() const { return plain_store(c_.kv_heads, c_.k_dim, Side::key, dtype_); }
  std::size_t row_bytes() const { return static_cast<std::size_t>(p_.kept_channels(c_.k_dim) * bytes_of(dtype_)); }
  std::int64_t thin() const { return static_cast<std::int64_t>(heads_.front().rows.size() / row_bytes()); }

  void prune() {
    const std::int64_t n = rows_->size().value, old = p_.pruned_rows(Tokens(n));
    const Array queries = queries_.read();
    queries_.clear();
    if (old == 0) return;
    for (int h = 0; h < c_.kv_heads; ++h) {
      Array keys({n, c_.k_dim});
      rows_->read(h, 0, keys.view());
      Head& head = heads_[static_cast<std::size_t>(h)];
      head.channels = top_k(channel_scores(queries.view().slice(0, std::int64_t{h} * c_.q_per_kv(), c_.q_per_kv()), keys.view()), p_.kept_channels(c_.k_dim));
      std::vector<float> few(head.channels.size());
      head.rows.resize(static_cast<std::size_t>(old) * row_bytes());
      for (std::int64_t i = 0; i < old; ++i) {
        for (std::size_t c = 0; c < few.size(); ++c) few[c] = keys.view()(i, head.channels[c]);
        num::store(dtype_, few, std::span(head.rows).subspan(static_cast<std::size_t>(i) * row_bytes(), row_bytes()));
      }
    }
    rows_->drop_front(Tokens(old));
  }

  Params p_;
  LayerClass c_;
  Dtype dtype_;
  RopeTable rope_;
  QueryWindow queries_;
  std::unique_ptr<SideStore> rows_;
  std::vector<Head> heads_;
  bool prompt_done_ = false;
};

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  const std::int64_t thin = p.pruned_rows(h.prompt), e = bytes_of(shape.dtype);
  Ledger ledger;
  std::int64_t queries = 0;
  for_sides(shape, h, [&](const LayerClass& c, Side side, std::int64_t width) {
    const std::int64_t runs = width / dim_of(c, side);
    ledger.add("rows", side, Scope::token, Bytes((h.tokens().value - (side == Side::key ? thin : 0)) * width * e));
    if (side == Side::value) return;
    ledger.add("thin_rows", side, Scope::token, Bytes(thin * runs * p.kept_channels(c.k_dim) * e));
    ledger.add("channels", side, Scope::head, Bytes(thin > 0 ? runs * ceil_div(c.k_dim, 8) : 0));
    queries += std::min(p.observation_window, h.prompt).value * std::int64_t{c.count()} * h.sequences * c.q_heads * c.k_dim * e;
  });
  ledger.set_prefill(dense_prompt(shape, h) + Bytes(queries));
  return ledger;
}

/// Thin keys at their mean width; a context does not say how much of it was the prompt, so all but the recent window is.
SideLayout side_layout(const Params& p, const LayerClass& c, Side side, Dtype dtype, Tokens context) {
  if (side == Side::value) return {.format = CodeFormat::plain(dtype)};
  return {.format = spread_format(CodeKind::table, GroupAxis::channels, c.k_dim, 8.0 * bytes_of(dtype) * p.kept_channels(c.k_dim)),
          .plain = std::min(context, p.recent_window)};
}

/// The plan of a step knows the prompt: generated keys are whole.
Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Params now = p;
  now.recent_window = std::min(h.tokens(), p.recent_window + h.generated);
  return side_decode_plan(shape, h, layout_with<Params, side_layout>(now, shape.dtype));
}

/// A pass over the keys for their squares, and the copy of the channels that stay.
Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan = dense_prefill_plan(shape, h);
  const std::int64_t thin = p.pruned_rows(h.prompt);
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv || h.prompt.value == 0) continue;
    plan.add(kernels::LabelScore{.sequences = h.sequences, .heads = c.kv_heads, .q_per_head = 1, .channels = c.k_dim,
                                 .label_bits = std::int64_t{8} * c.k_dim * bytes_of(shape.dtype), .tokens = h.prompt}
                 .call(c.count()));
    plan.add(kernels::Copy{.segments = std::int64_t{h.sequences} * c.kv_heads, .bytes = thin * p.kept_channels(c.k_dim) * bytes_of(shape.dtype)}.call(c.count()));
  }
  return plan;
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) {
  if (side == Side::value) return plain_store(c.kv_heads, c.v_dim, side, dtype);
  return std::make_unique<Keys>(p, c, dtype);
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs&) {
  return std::make_unique<SideCache>(
      shape, [p, dtype = shape.dtype](const LayerClass& c, int layer, Side side) { return open_side(p, c, layer, side, dtype); });
}

constexpr Compat kCompat[] = {{"recent_window=0", "kvpress prunes the newest keys of the prompt too; it writes zeros and saves no memory"}};

}  // namespace

extern constinit const Method think{
    .slug = "think", .name = "ThinK", .family = Family::eviction,
    .paper = {.title = "ThinK: Thinner Key Cache by Query-Driven Pruning", .url = "https://arxiv.org/abs/2407.21018", .year = 2024},
    .params = specs<Params>, .compat = kCompat,
    .serving = {.prefix_cache = {Works::no, "which channels stay depends on the prompt's last queries"},
                .paged_cache = {Works::partly, "pages of thin keys are smaller than those of values"},
                .chunked_prefill = {Works::yes, "channels are chosen when the prompt is complete"},
                .cuda_graphs = {Works::yes, "the choice is made once"}, .tensor_parallelism = {Works::yes, "kv heads choose independently"},
                .speculation = {Works::yes, "generated keys are whole and can be taken back"},
                .multi_turn = {Works::partly, "channels that the first question did not need are gone for the second"}},
    .exact_when = "ratio=0",
    .notes = "A share of 0.4 is assumed. kvpress counts half of the share as its compression, since values stay whole. Plans read thin keys at their mean width. "
             "A later prompt of the same sequence is kept whole.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>, .prefill_plan = typed<prefill_plan>,
    .open = typed<open>, .open_side = typed<open_side>, .side_layout = typed<side_layout>,
};

}  // namespace kvatlas::methods

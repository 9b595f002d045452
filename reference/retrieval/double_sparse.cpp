// double_sparse: the whole cache stays; beside it every token has a label, a few channels of its key that stand for the
// head. A decode step scores all tokens by their labels and attends exactly to the best.
// Source    sheet double_sparse; Yang et al., arXiv 2408.07092, sections 3.1 (channels), 3.2 (labels); andy-yang-1/DoubleSparse
// Keeps     every token; keys after RoPE, in the cache's dtype; a label a token and label head in sparse layers; the channel
//           table of every label head
// Deviates  without a channel file the paper's calibration formula runs over the prompt instead of a text corpus, and labels
//           of the prompt are written at its end; prompt attention is dense (the accuracy code masks prompt rows too);
//           minimum and maximum of a label are stored and counted (the accuracy code keeps them nowhere)
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/errors.hpp"
#include "core/formats/int_codes.hpp"
#include "core/kernels/attention.hpp"
#include "core/kernels/select.hpp"
#include "core/kernels/store.hpp"
#include "core/parallel.hpp"
#include "reference/method.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/side_cache.hpp"
#include "reference/primitives/sparse_attention.hpp"
#include "reference/primitives/trained.hpp"
#include "reference/retrieval/double_sparse/labels.hpp"

namespace kvatlas::methods {
namespace {

using double_sparsity::Calibration;
using double_sparsity::LabelFormat;
using double_sparsity::Statistic;
enum class Owner : std::uint8_t { kv_head, q_head };
constexpr std::array<std::string_view, 2> kOwner{"per_kv_head", "per_q_head"};
constexpr std::array<std::string_view, 3> kStatistic{"q", "k", "qk"};

struct Params {
  Tokens heavy{256};
  int group_factor = 2;
  int label_bits = 2;
  int dense_layers = 2;
  Owner labels = Owner::kv_head;
  Statistic statistic = Statistic::q;
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::heavy, "heavy", "token", 1, 1 << 24, "tokens attended in a decode step"),
        field(&Params::group_factor, "group_factor", "channel", 1, 64, "channels of a key for each channel of its label"),
        field(&Params::label_bits, "label_bits", "bit", 1, 16, "width of a label channel: 1 to 8, or 16 for the cache's dtype"),
        field(&Params::dense_layers, "dense_layers", "layer", 0, 4, "first layers of the model that attend to everything"),
        choice(&Params::labels, "labels", kOwner, "heads that own channels and labels: per_q_head as in the accuracy code"),
        choice(&Params::statistic, "statistic", kStatistic, "what ranks channels: |q| or |k| before RoPE, |q k| of a token with itself after it")};
  }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if (p.label_bits > 8 && p.label_bits < 16) return cat("label_bits is ", p.label_bits, ", must be 1 to 8, or 16 for labels in the cache's dtype");
  if (const auto reason = why_not_listed(shape)) return reason;
  for (const LayerClass& c : shape.classes)
    if (c.kind == RowKind::kv && c.k_dim % p.group_factor != 0)
      return cat("group_factor is ", p.group_factor, ", must divide head_dim (", c.k_dim, ")");
  return std::nullopt;
}

LabelFormat format_of(const Params& p, const LayerClass& c, Dtype dtype) {
  return {.channels = c.k_dim / p.group_factor, .bits = p.label_bits, .dtype = dtype};
}
int label_heads(const Params& p, const LayerClass& c) { return p.labels == Owner::q_head ? c.q_heads : c.kv_heads; }

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger = dense_ledger(shape, h);
  History prompt = h;
  prompt.generated = Tokens(0);
  Bytes before_end = dense_ledger(shape, prompt).total();
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    const std::int64_t heads = std::int64_t{label_heads(p, c)} * (c.count() - layers_below(c, p.dense_layers)) * h.sequences;
    const LabelFormat f = format_of(p, c, shape.dtype);
    ledger.add("labels", Side::key, Scope::token, Bytes(h.tokens().value * heads * f.row_bytes()));
    ledger.add("channels", Side::key, Scope::head, Bytes(heads * f.channels * 2));
    before_end += Bytes(heads * c.k_dim * 8);  // the sums that rank channels, until the prompt ends
  }
  ledger.set_prefill(before_end);
  return ledger;
}

/// The label of one token as a code format: codes, and one minimum and maximum for all channels.
CodeFormat code_format(const LabelFormat& f) {
  if (!f.coded()) return CodeFormat::plain(f.dtype);
  return {.kind = CodeKind::integer, .bits = f.bits, .axis = GroupAxis::channels, .group_size = f.channels, .group_bits = 16 * bytes_of(f.dtype)};
}

/// Labels of every token are scored, then single tokens are gathered. Each query head lists its own tokens, so a kv head
/// loads the union of its group's lists: expected_union, between one and q_per_kv times `heavy`.
void add_sparse_step(Plan& plan, const Params& p, const LayerClass& c, Dtype dtype, const History& h) {
  const LabelFormat f = format_of(p, c, dtype);
  const CodeFormat plain = CodeFormat::plain(dtype);
  const int heads = label_heads(p, c);
  const std::int64_t rows = std::int64_t{h.sequences} * c.q_heads;
  const Tokens loaded = expected_union(p.heavy, h.tokens(), c.q_per_kv());
  const double launches = c.count() + static_cast<double>(c.readers.size());
  add_append(plan, c, dtype, h);
  plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = heads, .k_dim = f.channels, .v_dim = 0, .dtype = dtype,
                           .k_format = code_format(f), .v_format = plain}
               .call(c.count()));
  plan.add(kernels::LabelScore{.sequences = h.sequences, .heads = heads, .q_per_head = c.q_heads / std::max(1, heads), .channels = f.channels,
                               .label_bits = 8 * f.row_bytes(), .tokens = h.tokens()}
               .call(launches));
  plan.add(kernels::TopK{.rows = rows, .candidates = h.tokens().value, .k = p.heavy.value}.call(launches));
  plan.add(kernels::DecodeAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim,
                                    .v_dim = c.v_dim, .dtype = dtype, .tokens = loaded, .k_format = plain, .v_format = plain, .run = Tokens(1)}
               .call(launches));
  plan.add(kernels::SpanMerge{.rows = rows, .v_dim = c.v_dim, .dtype = dtype, .tokens = loaded}.call(launches));
}

Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  if (p.heavy >= h.tokens()) return dense_decode_plan(shape, h);
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

/// Dense prompt attention, then one pass that reads the chosen channels and writes labels. The ranking of channels is not
/// charged: the paper does it once, before serving.
Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan = dense_prefill_plan(shape, h);
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    const LabelFormat f = format_of(p, c, shape.dtype);
    plan.add(kernels::QuantizePack{.heads = std::int64_t{h.sequences} * label_heads(p, c), .rows = h.prompt.value, .dim = f.channels,
                                   .dtype = shape.dtype, .format = code_format(f)}
                 .call(layers_from(c, p.dense_layers).count()));
  }
  return plan;
}

class Cache final : public KvCache {
 public:
  Cache(const Params& p, CacheShape shape, const TensorMap* trained) : p_(p), shape_(std::move(shape)), rotary_(shape_), from_file_(trained != nullptr) {
    for (const LayerClass& c : shape_.classes)
      for (const int l : c.layers) {
        if (c.kind != RowKind::kv) continue;
        layers_.push_back(make_layer(c, l));
        if (trained != nullptr && l >= p_.dense_layers) layers_.back().channels = read_table(*trained, c, l);
      }
  }

  void forward(int layer, const StepInput& step, View<float> out) override {
    const PreparedStep s = prepare_step(shape_, rotary_, layer, step, out);
    Layer& l = at(layer);
    const std::int64_t old = l.keys->size().value;
    l.keys->append(s.k.view());
    l.values->append(s.v.view());
    if (!l.channels.empty()) {
      append_labels(l, s.k.view());
    } else if (l.labels && !prompt_done_) {
      calibrate(l, s);
    }
    try {
      parallel_for(l.c->kv_heads, [&](std::int64_t head) { attend(l, static_cast<int>(head), old, s, step, out); });
    } catch (...) {  // labels of huge keys may add up to NaN, which no selection accepts
      take_back(l, old);
      throw;
    }
  }

  /// Ranks the channels where no file did, and gives every token of the prompt its label.
  void end_prefill() override {
    if (prompt_done_) return;
    prompt_done_ = true;
    for (Layer& l : layers_) {
      if (!l.labels || !l.channels.empty()) continue;
      for (int head = 0; head < label_heads(p_, *l.c); ++head)
        l.channels.push_back(l.calibration->channels(head, format_of(p_, *l.c, shape_.dtype).channels));
      l.calibration.reset();
      l.ranked_at = l.keys->size().value;
      relabel(l);
    }
  }

  void check_crop(Tokens length) const override {
    if (length.value < 0) throw InvalidArgument(cat("length is ", length.value, ", must be >= 0"));
    for (const Layer& l : layers_)
      if (l.keys->size() > length && (l.calibration || length.value < l.ranked_at))
        throw Unsupported("crop: the channels were ranked by tokens that would be taken back");
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
      if (!l.labels) continue;
      if (l.calibration) {
        all.push_back(words(cat("layer", l.index, "/statistic"), "statistic", l.calibration->values()));
        continue;
      }
      std::vector<std::uint16_t> table;
      for (const auto& head : l.channels) table.insert(table.end(), head.begin(), head.end());
      all.push_back(words(cat("layer", l.index, "/channels"), "channels", table));
      const std::size_t first = all.size();
      l.labels->buffers(cat("layer", l.index, "/"), all);
      for (std::size_t i = first; i < all.size(); ++i) all[i].component = "labels";
    }
    return all;
  }

  /// Labels that are not those of the keys would hide tokens silently, so they are refused.
  void load(std::span<const NamedBuffer> saved) override {
    std::vector<Layer> loaded;
    bool done = true;
    for (const Layer& from : layers_) {
      Layer l = make_layer(*from.c, from.index);
      l.keys->load(cat("layer", l.index, "/k_"), saved);
      l.values->load(cat("layer", l.index, "/v_"), saved);
      if (l.values->size() != l.keys->size())
        throw InvalidArgument(cat("layer", l.index, " has ", l.keys->size().value, " keys and ", l.values->size().value, " values, must be as many"));
      const std::string statistic = cat("layer", l.index, "/statistic");
      if (l.labels && std::ranges::any_of(saved, [&](const NamedBuffer& b) { return b.name == statistic; })) {
        read_words(find_buffer(saved, statistic), l.calibration->values());
        done = false;
      } else if (l.labels) {
        load_labels(l, saved);
      }
      loaded.push_back(std::move(l));
    }
    layers_ = std::move(loaded);
    prompt_done_ = done;
  }

  Tokens kept(int layer, int) const override { return at(layer).keys->size(); }

 private:
  struct Layer {
    int index = 0;
    const LayerClass* c = nullptr;
    std::unique_ptr<SideStore> keys, values;
    std::unique_ptr<RowStore> labels;                  // none in dense layers
    std::optional<Calibration> calibration;            // until channels are known
    std::vector<std::vector<std::uint16_t>> channels;  // one list a label head
    std::int64_t ranked_at = 0;  // tokens that ranked the channels, or that a loaded cache brought: no crop below
  };

  Layer make_layer(const LayerClass& c, int index) const {
    Layer l{.index = index, .c = &c, .keys = plain_store(c.kv_heads, c.k_dim, Side::key, shape_.dtype),
            .values = plain_store(c.kv_heads, c.v_dim, Side::value, shape_.dtype), .labels = nullptr, .calibration = {}, .channels = {}};
    if (index < p_.dense_layers) return l;
    const LabelFormat f = format_of(p_, c, shape_.dtype);
    l.labels = std::make_unique<RowStore>(
        label_heads(p_, c), f.channels, Side::key,
        RowStore::Codec{.component = "labels", .row_bytes = f.row_bytes(),
                        .encode = [f](std::span<const float> row, std::span<std::byte> to) { f.encode(row, to); },
                        .decode = [f](std::span<const std::byte> from, std::span<float> row) { f.decode(from, row); }});
    l.calibration.emplace(label_heads(p_, c), c.k_dim);
    return l;
  }

  const Layer& at(int layer) const {
    for (const Layer& l : layers_)
      if (l.index == layer) return l;
    throw InvalidArgument(cat("layer is ", layer, ", must be a layer that caches rows"));
  }
  Layer& at(int layer) { return const_cast<Layer&>(std::as_const(*this).at(layer)); }

  int kv_head_of(const LayerClass& c, int label_head) const { return p_.labels == Owner::q_head ? label_head / c.q_per_kv() : label_head; }

  /// "layer<l>.channels" [label heads, at least head_dim / group_factor], most important first.
  std::vector<std::vector<std::uint16_t>> read_table(const TensorMap& trained, const LayerClass& c, int layer) {
    const std::string name = trained_name(layer, "channels");
    const int heads = label_heads(p_, c), count = c.k_dim / p_.group_factor;
    const NamedTensor& t = trained_tensor(trained, layer, "channels", {heads, 0});
    if (t.dims[1] < count) throw InvalidArgument(cat("tensor \"", name, "\" names ", t.dims[1], " channels a head, must name at least ", count));
    std::vector<std::vector<std::uint16_t>> table(static_cast<std::size_t>(heads));
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t i = 0; i < count; ++i) {
        const float id = t.values[static_cast<std::size_t>(h * t.dims[1] + i)];
        if (!(id >= 0) || id >= static_cast<float>(c.k_dim) || id != std::trunc(id))
          throw InvalidArgument(cat("tensor \"", name, "\" holds ", id, ", must hold channels from 0 to ", c.k_dim - 1));
        table[static_cast<std::size_t>(h)].push_back(static_cast<std::uint16_t>(id));
      }
    for (Layer& l : layers_)
      if (l.index == layer) l.calibration.reset();
    check_distinct(table, name);
    return table;
  }

  static void check_distinct(const std::vector<std::vector<std::uint16_t>>& table, const std::string& name) {
    for (std::vector<std::uint16_t> head : table) {
      std::ranges::sort(head);
      if (const auto twice = std::ranges::adjacent_find(head); twice != head.end())
        throw InvalidArgument(cat(name, " names channel ", *twice, " twice in one head"));
    }
  }

  void load_labels(Layer& l, std::span<const NamedBuffer> saved) const {
    const std::string name = cat("layer", l.index, "/channels");
    const auto count = static_cast<std::size_t>(format_of(p_, *l.c, shape_.dtype).channels);
    std::vector<std::uint16_t> table(count * static_cast<std::size_t>(label_heads(p_, *l.c)));
    read_words(find_buffer(saved, name), table);
    for (std::size_t first = 0; first < table.size(); first += count)
      l.channels.emplace_back(table.begin() + static_cast<std::ptrdiff_t>(first), table.begin() + static_cast<std::ptrdiff_t>(first + count));
    for (const std::uint16_t id : table)
      if (id >= l.c->k_dim) throw InvalidArgument(cat("buffer ", name, " holds channel ", id, ", must be below head_dim (", l.c->k_dim, ")"));
    check_distinct(l.channels, name);
    l.calibration.reset();
    if (!from_file_) l.ranked_at = l.keys->size().value;
    relabel(l);
    std::vector<NamedBuffer> labels;
    l.labels->buffers(cat("layer", l.index, "/"), labels);
    for (const NamedBuffer& b : labels)
      if (find_buffer(saved, b.name).bytes != b.bytes)
        throw InvalidArgument(cat("buffer ", b.name, " does not hold the labels of the keys"));
  }

  template <class T>
  static NamedBuffer words(std::string name, std::string_view component, const std::vector<T>& values) {
    NamedBuffer b{.name = std::move(name), .component = component, .side = Side::key, .scope = Scope::head, .bytes = {}};
    b.bytes.resize(values.size() * sizeof(T));
    std::memcpy(b.bytes.data(), values.data(), b.bytes.size());
    return b;
  }
  template <class T>
  static void read_words(const NamedBuffer& b, std::vector<T>& values) {
    if (b.bytes.size() != values.size() * sizeof(T))
      throw InvalidArgument(cat("buffer ", b.name, " has ", b.bytes.size(), " bytes, must be ", values.size() * sizeof(T)));
    std::memcpy(values.data(), b.bytes.data(), b.bytes.size());
  }

  /// With a table a kv head, the statistic of its query heads is summed.
  void calibrate(Layer& l, const PreparedStep& s) const {
    const LayerClass& c = *l.c;
    for (std::int64_t i = 0; i < s.n; ++i)
      for (int q_head = 0; q_head < c.q_heads; ++q_head) {
        const int kv_head = q_head / c.q_per_kv(), head = p_.labels == Owner::q_head ? q_head : kv_head;
        if (p_.statistic == Statistic::q) l.calibration->add(head, s.q_pre.view().row(q_head, i));
        if (p_.statistic == Statistic::k) l.calibration->add(head, s.k_pre.view().row(kv_head, i));
        if (p_.statistic == Statistic::qk) l.calibration->add(head, s.q.view().row(q_head, i), s.k.view().row(kv_head, i));
      }
  }

  void append_labels(const Layer& l, View<const float> k) const {
    const auto heads = static_cast<std::int64_t>(l.channels.size()), count = static_cast<std::int64_t>(l.channels.front().size());
    Array labels({heads, k.dim(1), count});
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t i = 0; i < k.dim(1); ++i) {
        const auto key = k.row(kv_head_of(*l.c, static_cast<int>(h)), i);
        for (std::int64_t r = 0; r < count; ++r) labels.view()(h, i, r) = key[l.channels[static_cast<std::size_t>(h)][static_cast<std::size_t>(r)]];
      }
    l.labels->append(labels.view());
  }

  /// Labels of all stored keys.
  void relabel(const Layer& l) const {
    Array k({l.c->kv_heads, l.keys->size().value, l.c->k_dim});
    for (int head = 0; head < l.c->kv_heads; ++head) l.keys->read(head, 0, k.view()[head]);
    l.labels->crop(Tokens(0));
    append_labels(l, k.view());
  }

  static void take_back(const Layer& l, std::int64_t length) {
    l.keys->crop(Tokens(length));
    l.values->crop(Tokens(length));
    if (l.labels) l.labels->crop(Tokens(length));
  }

  void attend(const Layer& l, int head, std::int64_t old, const PreparedStep& s, const StepInput& step, View<float> out) const {
    const LayerClass& c = *l.c;
    const std::int64_t rows = l.keys->size().value;
    Array k({rows, c.k_dim}), v({rows, c.v_dim});
    l.keys->read(head, 0, k.view());
    l.values->read(head, 0, v.view());
    if (!prompt_done_ || !l.labels) {
      attend_new(c, head, s.q.view(), k.view(), v.view(), step.mask, step.sinks, out);
      return;
    }
    Array label({rows, static_cast<std::int64_t>(l.channels.front().size())});
    for (int g = 0; g < c.q_per_kv(); ++g) {
      const int q_head = head * c.q_per_kv() + g;
      const int owner = p_.labels == Owner::q_head ? q_head : head;
      if (g == 0 || p_.labels == Owner::q_head) l.labels->read(owner, 0, label.view());
      for (std::int64_t i = 0; i < s.n; ++i) {
        Slots seen = seen_rows(step.mask, old, s.n, i);
        if (static_cast<std::int64_t>(seen.size()) > p_.heavy.value) {
          const std::vector<float> q_label =
              double_sparsity::query_label(s.q.view().row(q_head, i), l.channels[static_cast<std::size_t>(owner)], p_.label_bits);
          std::vector<float> scores;
          for (const std::int64_t t : seen) scores.push_back(double_sparsity::label_score(q_label, label.view().row(t)));
          Slots kept;
          for (const std::int64_t j : top_k(scores, p_.heavy.value)) kept.push_back(seen[static_cast<std::size_t>(j)]);
          seen = std::move(kept);
        }
        attend_listed(c, s.q.view().row(q_head, i), k.view(), v.view(), seen, sink_of(c, step, q_head), out.row(q_head, i));
      }
    }
  }

  Params p_;
  CacheShape shape_;
  Rotary rotary_;
  bool from_file_;
  std::vector<Layer> layers_;
  bool prompt_done_ = false;
};

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs& inputs) {
  if (const auto reason = why_not(p, shape)) throw Unsupported(cat("double_sparse: ", *reason));
  return std::make_unique<Cache>(p, shape, inputs.trained);
}

constexpr Deployable kDeployable[] = {
    {"sglang", "0.3.4", "--enable-double-sparsity --ds-channel-config-path FILE --ds-heavy-channel-num N --ds-heavy-token-num N",
     "sgl-project/sglang pull request 1459, merged October 2024"}};

std::optional<std::string> needs_unrotated(const Params& p) {
  return p.statistic != Statistic::qk ? std::optional("it ranks channels before RoPE (statistic=qk ranks them after it)") : std::nullopt;
}

}  // namespace

extern constinit const Method double_sparse{
    .slug = "double_sparse", .name = "Double Sparsity", .family = Family::retrieval,
    .paper = {.title = "Post-Training Sparse Attention with Double Sparsity", .url = "https://arxiv.org/abs/2408.07092", .year = 2024},
    .params = specs<Params>, .deployable = kDeployable,
    .serving = {.prefix_cache = {Works::partly, "with a channel file; channels ranked by a prompt belong to that prompt"},
                .cuda_graphs = {Works::partly, "the list of tokens changes every step, its length does not once the context passes heavy"},
                .speculation = {Works::yes, "drafted tokens select for themselves; channels ranked by the prompt stay"},
                .multi_turn = {Works::partly, "the prompt of a later turn is attended sparsely too; channels ranked by the first prompt serve it unless they come from a file"}},
    .exact_when = "heavy=1048576",
    .notes = "Channels come from a trained file (tensors layer<l>.channels [label heads, channels], most important first) or, without one, from "
             "the paper's calibration formula over the prompt itself, a deviation: the paper ranks once on 256 samples of Pile validation text. "
             "The sums behind the ranking are held until the prompt ends and count in prefill; with a file they are not held and labels are "
             "written as tokens come. The released qk statistic keeps only the last block by mistake; here it sums all tokens. "
             "Prompt attention is dense; the accuracy code masks prompt rows too. Scores carry 1/sqrt(channels) as in the accuracy code; the "
             "fast path leaves it out, which orders tokens alike. Query labels are coded like key labels, as in the accuracy code. Minimum and maximum of a coded "
             "label are stored in the cache's dtype (both are key values) and counted. Where a code's scale would overflow it is taken as for "
             "a range of zero. Each query head lists its own tokens; a plan charges the expected union of a group's lists under independent "
             "choices, at most q_per_kv times heavy. Offloading with a predicted query is not covered.",
    .why_not = typed<why_not>, .needs_unrotated = typed<needs_unrotated>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods

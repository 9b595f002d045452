// hydragen: sequences that share a prefix store it once; attention over every shared part is one matrix product for all
// of its sequences, and the parts are merged exactly.
// Source    sheet hydragen; Juravsky et al., arXiv 2402.05099, section 3 (attention decomposition), 3.3 (tree sharing)
// Keeps     every token once per node of a tree of shared parts; keys after RoPE, in the cache's dtype
// Deviates  any tree is allowed where the official code needs groups that divide the batch; parts stay float32 until
//           the merge (the official code merges in half precision when asked to)
#include <algorithm>
#include <cstring>
#include <set>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/kernels/attention.hpp"
#include "core/kernels/store.hpp"
#include "core/parallel.hpp"
#include "reference/method.hpp"
#include "reference/primitives/attention.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/side_cache.hpp"

namespace kvatlas::methods {
namespace {

struct Params {
  static constexpr auto fields() { return std::tuple{}; }
};

std::optional<std::string> why_not(const Params&, const CacheShape& shape) {
  for (const LayerClass& c : shape.classes) {
    if (c.window.value > 0) return cat("a sliding window of ", c.window.value, " tokens cuts into shared prefixes; use full for such layers");
    if (c.kind != RowKind::kv) return "layers must cache keys and values; latent rows are not shared by this reference";
    if (c.attention_sink) return "layers with a learned sink logit are not covered";
  }
  return std::nullopt;
}

/// One shared prefix under all sequences, a tail of each, and the tree's links.
Ledger ledger_formula(const Params&, const CacheShape& shape, const History& h, const ContentCounts&) {
  Ledger ledger;
  const std::int64_t shared = h.shared_prefix.value, tail = h.tokens().value - shared;
  for (const LayerClass& c : shape.classes) {
    const std::int64_t row = std::int64_t{c.kv_heads} * bytes_of(shape.dtype) * c.count();
    if (shared > 0) {
      ledger.add("shared_rows", Side::key, Scope::sequence, Bytes(shared * row * c.k_dim));
      ledger.add("shared_rows", Side::value, Scope::sequence, Bytes(shared * row * c.v_dim));
    }
    ledger.add("rows", Side::key, Scope::token, Bytes(tail * row * c.k_dim * h.sequences));
    ledger.add("rows", Side::value, Scope::token, Bytes(tail * row * c.v_dim * h.sequences));
  }
  const std::int64_t nodes = h.sequences + (shared > 0 ? 1 : 0);
  ledger.add("tree", Side::both, Scope::sequence, Bytes(4 * (nodes + h.sequences)));
  return ledger;
}

Plan decode_plan(const Params&, const CacheShape& shape, const History& h, const ContentCounts&) {
  if (h.shared_prefix.value == 0) return dense_decode_plan(shape, h);
  Plan plan;
  const Tokens tail = h.tokens() - h.shared_prefix;
  const CodeFormat plain = CodeFormat::plain(shape.dtype);
  for (const LayerClass& c : shape.classes) {
    add_append(plan, c, shape.dtype, h);
    plan.add(kernels::SharedAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(),
                                      .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = shape.dtype, .tokens = h.shared_prefix}
                 .call(c.count()));
    plan.add(kernels::DecodeAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(),
                                      .k_dim = c.k_dim, .v_dim = c.v_dim, .dtype = shape.dtype, .tokens = tail,
                                      .k_format = plain, .v_format = plain, .partial = true}
                 .call(tail.value > 0 ? c.count() : 0));
    plan.add(kernels::StateMerge{.rows = std::int64_t{h.sequences} * c.q_heads,
                                 .levels = span_count(h.shared_prefix.value) + span_count(tail.value),
                                 .v_dim = c.v_dim, .dtype = shape.dtype}
                 .call(c.count()));
  }
  return plan;
}

/// The prefix once; then all tails over it together, each over itself, and the merge of the two.
Plan prefill_plan(const Params&, const CacheShape& shape, const History& h, const ContentCounts&) {
  if (h.shared_prefix.value == 0) return dense_prefill_plan(shape, h);
  History prefix = h;
  prefix.prompt = h.shared_prefix;
  prefix.sequences = 1;
  Plan plan = dense_prefill_plan(shape, prefix);
  const Tokens tail = h.prompt - h.shared_prefix;
  if (tail.value <= 0) return plan;
  for (const LayerClass& c : shape.classes) {
    plan.add(kernels::SharedAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim,
                                      .v_dim = c.v_dim, .dtype = shape.dtype, .tokens = h.shared_prefix, .queries = tail.value}
                 .call(c.count()));
    plan.add(kernels::PrefillAttention{.sequences = h.sequences, .kv_heads = c.kv_heads, .q_per_kv = c.q_per_kv(), .k_dim = c.k_dim,
                                       .v_dim = c.v_dim, .dtype = shape.dtype, .past = Tokens(0), .chunk = tail, .partial = true}
                 .call(c.count()));
    plan.add(kernels::StateMerge{.rows = std::int64_t{h.sequences} * c.q_heads * tail.value,
                                 .levels = tail.value > 1 ? 2 : span_count(h.shared_prefix.value) + 1, .v_dim = c.v_dim, .dtype = shape.dtype}
                 .call(c.count()));
    plan.add(kernels::Append{.sequences = h.sequences, .kv_heads = c.kv_heads, .k_dim = c.k_dim, .v_dim = c.v_dim,
                             .dtype = shape.dtype, .k_format = CodeFormat::plain(shape.dtype),
                             .v_format = CodeFormat::plain(shape.dtype), .rows = tail.value}
                 .call(c.count()));
  }
  return plan;
}

/// A part of the text that one or more sequences hold; its rows follow those of its parent.
struct Node {
  std::int32_t parent = -1;
  int users = 0;  // child nodes and sequences
  struct Layer {
    std::unique_ptr<SideStore> keys, values;
  };
  std::vector<Layer> layers;  // one for each entry of Group::layers_
  std::int64_t rows() const { return layers.empty() ? 0 : layers.front().keys->size().value; }
};

class Group final : public KvGroup {
 public:
  explicit Group(CacheShape shape) : shape_(std::move(shape)), rotary_(shape_) {
    for (const LayerClass& c : shape_.classes)
      for (const int l : c.layers) layers_.push_back({l, &c});
  }

  int fork(int parent) override {
    std::int32_t under = -1;
    if (parent != -1) {
      std::int32_t& leaf = leaf_of(parent);
      if (nodes_[static_cast<std::size_t>(leaf)].rows() > 0) {
        // The parent's own part becomes shared; it goes on in a part of its own.
        const std::int32_t shared = leaf;
        leaf = add_node(shared);
        --nodes_[static_cast<std::size_t>(shared)].users;
        ++nodes_[static_cast<std::size_t>(leaf)].users;
      }
      under = nodes_[static_cast<std::size_t>(leaf)].parent;
    }
    const std::int32_t own = add_node(under);
    ++nodes_[static_cast<std::size_t>(own)].users;
    sequences_.push_back(own);
    return static_cast<int>(sequences_.size()) - 1;
  }

  void forward(int layer, std::span<const int> sequences, std::span<const StepInput> steps,
               std::span<const View<float>> out) override {
    if (sequences.size() != steps.size() || sequences.size() != out.size())
      throw InvalidArgument(cat("sequences, steps, out have ", sequences.size(), ", ", steps.size(), ", ", out.size(), " entries, must be as many"));
    std::set<int> once;
    std::vector<PreparedStep> prepared;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      leaf_of(sequences[i]);
      if (!once.insert(sequences[i]).second) throw InvalidArgument(cat("sequences names ", sequences[i], " twice"));
      if (steps[i].mask.kind != MaskKind::causal) throw Unsupported("hydragen: only the causal mask is offered");
      prepared.push_back(prepare_step(shape_, rotary_, layer, steps[i], out[i]));
    }
    const std::size_t at = slot(layer);
    const LayerClass& c = *layers_[at].second;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      Node& own = nodes_[static_cast<std::size_t>(leaf_of(sequences[i]))];
      own.layers[at].keys->append(prepared[i].k.view());
      own.layers[at].values->append(prepared[i].v.view());
    }
    parallel_for(static_cast<std::int64_t>(steps.size()) * c.kv_heads, [&](std::int64_t item) {
      const auto i = static_cast<std::size_t>(item / c.kv_heads);
      attend(c, at, static_cast<int>(item % c.kv_heads), leaf_of(sequences[i]), prepared[i], out[i]);
    });
  }

  void release(int sequence) override {
    std::int32_t node = leaf_of(sequence);
    sequences_[static_cast<std::size_t>(sequence)] = -1;
    while (node >= 0 && --nodes_[static_cast<std::size_t>(node)].users == 0) {
      nodes_[static_cast<std::size_t>(node)].layers.clear();
      node = nodes_[static_cast<std::size_t>(node)].parent;
    }
  }

  Tokens length(int sequence) const override {
    Tokens total(0);
    for (std::int32_t n = const_cast<Group*>(this)->leaf_of(sequence); n >= 0; n = nodes_[static_cast<std::size_t>(n)].parent)
      total += Tokens(nodes_[static_cast<std::size_t>(n)].rows());
    return total;
  }

  std::vector<NamedBuffer> buffers() const override {
    std::vector<NamedBuffer> all;
    std::vector<std::int32_t> parents;
    std::vector<int> holders(nodes_.size(), 0);  // sequences whose text a node is part of
    for (const std::int32_t s : sequences_)
      for (std::int32_t n = s; n >= 0; n = nodes_[static_cast<std::size_t>(n)].parent) ++holders[static_cast<std::size_t>(n)];
    for (std::size_t n = 0; n < nodes_.size(); ++n) {
      parents.push_back(nodes_[n].parent);
      const bool shared = holders[n] > 1;
      for (std::size_t l = 0; l < nodes_[n].layers.size(); ++l) {
        std::vector<NamedBuffer> some;
        nodes_[n].layers[l].keys->buffers(cat("node", n, "/layer", layers_[l].first, "/k_"), some);
        nodes_[n].layers[l].values->buffers(cat("node", n, "/layer", layers_[l].first, "/v_"), some);
        for (NamedBuffer& b : some) {
          if (b.bytes.empty()) continue;
          b.component = shared ? "shared_rows" : "rows";
          b.scope = shared ? Scope::sequence : Scope::token;
          all.push_back(std::move(b));
        }
      }
    }
    all.push_back(links("tree/parents", parents));
    all.push_back(links("tree/sequences", sequences_));
    return all;
  }

  void load(std::span<const NamedBuffer> saved) override {
    const std::vector<std::int32_t> parents = read_links(find_buffer(saved, "tree/parents"));
    const std::vector<std::int32_t> sequences = read_links(find_buffer(saved, "tree/sequences"));
    std::vector<Node> nodes;
    for (std::size_t n = 0; n < parents.size(); ++n) {
      if (parents[n] < -1 || parents[n] >= static_cast<std::int32_t>(n))
        throw InvalidArgument(cat("tree/parents[", n, "] is ", parents[n], ", must be -1 or an earlier node"));
      nodes.push_back(make_node(parents[n]));
    }
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const std::int32_t s = sequences[i];
      if (s < -1 || s >= static_cast<std::int32_t>(nodes.size())) throw InvalidArgument(cat("tree/sequences holds ", s, ", must be a node or -1"));
      if (s < 0) continue;
      if (std::ranges::find(parents, s) != parents.end())
        throw InvalidArgument(cat("tree/sequences[", i, "] is ", s, ", must not be the parent of a node: a sequence writes to a part of its own"));
      if (++nodes[static_cast<std::size_t>(s)].users > 1)
        throw InvalidArgument(cat("tree/sequences[", i, "] is ", s, ", must not be the node of another sequence"));
    }
    for (std::size_t n = nodes.size(); n-- > 0;)  // parents come first; nodes that nobody uses any more hold none
      if (parents[n] >= 0 && nodes[n].users > 0) ++nodes[static_cast<std::size_t>(parents[n])].users;
    for (std::size_t n = 0; n < nodes.size(); ++n)
      for (std::size_t l = 0; l < nodes[n].layers.size(); ++l) {
        const std::string prefix = cat("node", n, "/layer", layers_[l].first);
        const bool present = std::any_of(saved.begin(), saved.end(), [&](const NamedBuffer& b) { return b.name.starts_with(prefix + "/k_"); });
        if (!present) continue;  // a part without tokens
        nodes[n].layers[l].keys->load(prefix + "/k_", saved);
        nodes[n].layers[l].values->load(prefix + "/v_", saved);
        if (nodes[n].layers[l].keys->size() != nodes[n].layers[l].values->size())
          throw InvalidArgument(cat(prefix, " has ", nodes[n].layers[l].keys->size().value, " keys and ", nodes[n].layers[l].values->size().value, " values"));
      }
    nodes_ = std::move(nodes);
    sequences_ = sequences;
  }

 private:
  static NamedBuffer links(const char* name, const std::vector<std::int32_t>& values) {
    NamedBuffer b{.name = name, .component = "tree", .side = Side::both, .scope = Scope::sequence, .bytes = {}};
    b.bytes.resize(values.size() * 4);
    std::memcpy(b.bytes.data(), values.data(), b.bytes.size());
    return b;
  }
  static std::vector<std::int32_t> read_links(const NamedBuffer& b) {
    if (b.bytes.size() % 4 != 0) throw InvalidArgument(cat("buffer ", b.name, " has ", b.bytes.size(), " bytes, must be whole 4-byte links"));
    std::vector<std::int32_t> values(b.bytes.size() / 4);
    std::memcpy(values.data(), b.bytes.data(), b.bytes.size());
    return values;
  }
  Node make_node(std::int32_t parent) const {
    Node n{.parent = parent, .users = 0, .layers = {}};
    for (const auto& [layer, c] : layers_)
      n.layers.push_back({plain_store(c->kv_heads, c->k_dim, Side::key, shape_.dtype), plain_store(c->kv_heads, c->v_dim, Side::value, shape_.dtype)});
    return n;
  }
  std::int32_t add_node(std::int32_t parent) {
    nodes_.push_back(make_node(parent));
    if (parent >= 0) ++nodes_[static_cast<std::size_t>(parent)].users;
    return static_cast<std::int32_t>(nodes_.size()) - 1;
  }
  std::int32_t& leaf_of(int sequence) {
    if (sequence < 0 || sequence >= static_cast<int>(sequences_.size()) || sequences_[static_cast<std::size_t>(sequence)] < 0)
      throw InvalidArgument(cat("sequence is ", sequence, ", must be one that fork() returned and nobody released"));
    return sequences_[static_cast<std::size_t>(sequence)];
  }
  std::size_t slot(int layer) const {
    for (std::size_t i = 0; i < layers_.size(); ++i)
      if (layers_[i].first == layer) return i;
    throw InvalidArgument(cat("layer is ", layer, ", must be a layer that caches rows"));
  }

  /// Parts from the root down; the sequence's own part last, causal inside it.
  void attend(const LayerClass& c, std::size_t at, int head, std::int32_t leaf, const PreparedStep& p, View<float> out) const {
    std::vector<std::int32_t> path;
    for (std::int32_t n = leaf; n >= 0; n = nodes_[static_cast<std::size_t>(n)].parent) path.push_back(n);
    std::reverse(path.begin(), path.end());
    const float scale = logit_scale(c);
    std::vector<SoftmaxPart> state(static_cast<std::size_t>(c.q_per_kv() * p.n),
                                   SoftmaxPart{.max = 0, .sum = 0, .acc = std::vector<float>(static_cast<std::size_t>(c.v_dim))});
    for (const std::int32_t n : path) {
      const Node::Layer& l = nodes_[static_cast<std::size_t>(n)].layers[at];
      const std::int64_t rows = l.keys->size().value;
      if (rows == 0) continue;
      Array k({rows, c.k_dim}), v({rows, c.v_dim});
      l.keys->read(head, 0, k.view());
      l.values->read(head, 0, v.view());
      const View<const float> kv = k.view(), vv = v.view();
      for (int g = 0; g < c.q_per_kv(); ++g)
        for (std::int64_t i = 0; i < p.n; ++i) {
          const std::int64_t seen = n == leaf ? rows - p.n + i + 1 : rows;
          std::vector<float> x(static_cast<std::size_t>(seen));
          logits(p.q.view().row(head * c.q_per_kv() + g, i), kv.slice(0, 0, seen), scale, x);
          merge_into(state[static_cast<std::size_t>(g * p.n + i)], softmax_part(x, vv.slice(0, 0, seen)));
        }
    }
    for (int g = 0; g < c.q_per_kv(); ++g)
      for (std::int64_t i = 0; i < p.n; ++i) finish(state[static_cast<std::size_t>(g * p.n + i)], out.row(head * c.q_per_kv() + g, i));
  }

  CacheShape shape_;
  Rotary rotary_;
  std::vector<std::pair<int, const LayerClass*>> layers_;
  std::vector<Node> nodes_;
  std::vector<std::int32_t> sequences_;  // node of each sequence's own part; -1 once released
};

std::unique_ptr<KvGroup> open_group(const Params& p, const CacheShape& shape) {
  if (const auto reason = why_not(p, shape)) throw Unsupported(cat("hydragen: ", *reason));
  return std::make_unique<Group>(shape);
}

}  // namespace

extern constinit const Method hydragen{
    .slug = "hydragen", .name = "Hydragen", .family = Family::serving,
    .paper = {.title = "Hydragen: High-Throughput LLM Inference with Shared Prefixes", .url = "https://arxiv.org/abs/2402.05099", .year = 2024},
    .params = specs<Params>,
    .serving = {.cuda_graphs = {Works::partly, "a graph is bound to one tree of shared parts"},
                .speculation = {Works::partly, "drafted tokens go to the sequence's own part; shared parts are never taken back"}},
    .notes = "Exact in real arithmetic; parts are merged in the order root to leaf, so bits differ from one split over the whole "
             "context. Any tree of shared parts; the official code needs groups that divide the batch.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .open_group = typed<open_group>,
};

}  // namespace kvatlas::methods

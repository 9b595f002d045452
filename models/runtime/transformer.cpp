#include "models/runtime/transformer.hpp"

#include <algorithm>
#include <numeric>

#include "core/errors.hpp"
#include "core/parallel.hpp"
#include "models/files/printable.hpp"
#include "models/runtime/tensor_names.hpp"

namespace kvatlas::models {

namespace {

/// Row of the file that holds row `r` of a projection to rotated heads, in the order of neighbouring halves.
std::int64_t file_row(bool interleaved, std::int64_t r, std::int64_t head_dim) {
  if (!interleaved) return r;
  const std::int64_t head = r / head_dim, c = r % head_dim, half = head_dim / 2;
  return head * head_dim + (c < half ? 2 * c : 2 * (c - half) + 1);
}

/// The outputs of several tensors one after another, as one matrix.
struct Part {
  const SourceTensor* tensor = nullptr;
  std::int64_t out = 0;
  bool interleaved = false;
  std::int64_t head_dim = 1;
};

PackedMatrix pack(std::span<const Part> parts, std::int64_t in) {
  std::int64_t out = 0;
  for (const Part& p : parts) out += p.out;
  return {out, in, [parts, in](std::int64_t first, std::int64_t count, std::span<float> to) {
            for (std::int64_t i = 0; i < count; ++i) {
              std::int64_t r = first + i;
              std::size_t part = 0;
              while (r >= parts[part].out) r -= parts[part++].out;
              const Part& p = parts[part];
              p.tensor->rows(file_row(p.interleaved, r, p.head_dim), 1, to.subspan(static_cast<std::size_t>(i * in), static_cast<std::size_t>(in)));
            }
          }};
}

/// For a few hundred values a thread costs more than it brings.
void for_rows(std::int64_t rows, const std::function<void(std::int64_t)>& body) {
  constexpr std::int64_t kRun = 16;
  if (rows < 2 * kRun) {
    for (std::int64_t i = 0; i < rows; ++i) body(i);
    return;
  }
  parallel_for((rows + kRun - 1) / kRun, [&](std::int64_t run) {
    for (std::int64_t i = run * kRun; i < std::min(rows, (run + 1) * kRun); ++i) body(i);
  });
}

void add(std::span<float> to, std::span<const float> what) {
  for (std::size_t i = 0; i < what.size(); ++i) to[i] += what[i];
}

}  // namespace

Transformer::Transformer(Architecture architecture, WeightSet weights) : architecture_(std::move(architecture)), weights_(std::move(weights)) {
  const Model& m = architecture_.model;
  const TensorNames names(weights_, architecture_.post_norms);
  const auto vector = [&](Slot slot, int layer, std::int64_t size) {
    const SourceTensor& t = names.at(slot, layer, {size});
    std::vector<float> v(static_cast<std::size_t>(size));
    t.rows(0, 1, v);
    return v;
  };
  const auto norm = [&](Slot slot, int layer, std::int64_t size, bool needed) {
    if (!needed) return std::vector<float>{};
    std::vector<float> v = vector(slot, layer, size);
    if (architecture_.norm_adds_one)
      for (float& w : v) w += 1.0F;
    return v;
  };

  embedding_ = &names.at(Slot::embedding, -1, {m.vocabulary, m.hidden});
  last_norm_ = norm(Slot::last_norm, -1, m.hidden, true);
  const Part head[]{{.tensor = m.tied_embeddings ? embedding_ : &names.at(Slot::head, -1, {m.vocabulary, m.hidden}), .out = m.vocabulary}};
  head_ = pack(head, m.hidden);

  int count = 0;
  for (const LayerClass& c : m.cache.classes) count += c.count();
  layers_.resize(static_cast<std::size_t>(count));
  for (const LayerClass& c : m.cache.classes)
    for (const int l : c.layers) layers_[static_cast<std::size_t>(l)].c = &c;
  for (const LayerGroup& g : m.groups)
    for (const int l : g.layers) {
      Layer& layer = layers_[static_cast<std::size_t>(l)];
      const LayerClass& c = *layer.c;
      const std::int64_t q = std::int64_t{c.q_heads} * c.k_dim, k = std::int64_t{c.kv_heads} * c.k_dim, v = std::int64_t{c.kv_heads} * c.v_dim;
      const std::int64_t o = std::int64_t{c.q_heads} * c.v_dim;
      const bool interleaved = architecture_.interleaved_rows;
      layer.attention_norm = norm(Slot::attention_norm, l, m.hidden, true);
      layer.ffn_norm = norm(Slot::ffn_norm, l, m.hidden, true);
      layer.post_attention_norm = norm(Slot::post_attention_norm, l, m.hidden, architecture_.post_norms);
      layer.post_ffn_norm = norm(Slot::post_ffn_norm, l, m.hidden, architecture_.post_norms);
      layer.q_norm = norm(Slot::q_norm, l, c.k_dim, m.qk_norm);
      layer.k_norm = norm(Slot::k_norm, l, c.k_dim, m.qk_norm);
      const Part qkv[]{{&names.at(Slot::q, l, {q, m.hidden}), q, interleaved, c.k_dim},
                       {&names.at(Slot::k, l, {k, m.hidden}), k, interleaved, c.k_dim},
                       {.tensor = &names.at(Slot::v, l, {v, m.hidden}), .out = v}};
      layer.qkv = pack(qkv, m.hidden);
      if (m.qkv_bias) {
        const std::vector<float> bq = vector(Slot::q_bias, l, q), bk = vector(Slot::k_bias, l, k), bv = vector(Slot::v_bias, l, v);
        for (std::int64_t r = 0; r < q; ++r) layer.qkv_bias.push_back(bq[static_cast<std::size_t>(file_row(interleaved, r, c.k_dim))]);
        for (std::int64_t r = 0; r < k; ++r) layer.qkv_bias.push_back(bk[static_cast<std::size_t>(file_row(interleaved, r, c.k_dim))]);
        layer.qkv_bias.insert(layer.qkv_bias.end(), bv.begin(), bv.end());
      }
      const Part out[]{{.tensor = &names.at(Slot::o, l, {m.hidden, o}), .out = m.hidden}};
      layer.o = pack(out, o);
      if (std::ranges::any_of(g.matrices, [](const MatMul& w) { return w.name == "o" && w.bias; })) layer.o_bias = vector(Slot::o_bias, l, m.hidden);
      const Part gate_up[]{{.tensor = &names.at(Slot::gate, l, {g.ffn_width, m.hidden}), .out = g.ffn_width},
                           {.tensor = &names.at(Slot::up, l, {g.ffn_width, m.hidden}), .out = g.ffn_width}};
      layer.gate_up = pack(gate_up, m.hidden);
      const Part down[]{{.tensor = &names.at(Slot::down, l, {m.hidden, g.ffn_width}), .out = m.hidden}};
      layer.down = pack(down, g.ffn_width);
    }
  if (const std::string unused = names.unused(m.tied_embeddings); !unused.empty())
    throw InvalidArgument(cat("tensor ", printable(unused), " has no place in a ", m.model_type, " decoder; without it the pass would compute another model"));
}

TensorMap Transformer::output_weights() const {
  TensorMap map;
  const TensorNames names(weights_, architecture_.post_norms);
  for (int l = 0; l < layers(); ++l) {
    const LayerClass& c = layer_class(l);
    const std::int64_t in = std::int64_t{c.q_heads} * c.v_dim;
    NamedTensor t{.dims = {hidden(), in}, .values = std::vector<float>(static_cast<std::size_t>(hidden() * in))};
    names.at(Slot::o, l, t.dims).rows(0, hidden(), t.values);
    map[cat("layer", l, ".w_o")] = std::move(t);
  }
  return map;
}

Array Transformer::embed(std::span<const TokenId> tokens) const {
  const auto n = static_cast<std::int64_t>(tokens.size());
  Array x({n, hidden()});
  for (std::int64_t i = 0; i < n; ++i) {
    const TokenId id = tokens[static_cast<std::size_t>(i)];
    if (id < 0 || id >= vocabulary()) throw InvalidArgument(cat("token ", i, " is ", id, ", must be below the vocabulary (", vocabulary(), ")"));
    embedding_->rows(id, 1, x.view().row(i));
    if (architecture_.embedding_scale != 1.0F)
      for (float& f : x.view().row(i)) f *= architecture_.embedding_scale;
  }
  return x;
}

AttentionInputs Transformer::attention_inputs(int index, View<const float> x) const {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  const LayerClass& c = *layer.c;
  const std::int64_t n = x.dim(0);
  AttentionInputs in{.normed = Array({n, hidden()}), .qkv = Array({n, layer.qkv.out()})};
  for_rows(n, [&](std::int64_t i) { rms_norm(x.row(i), layer.attention_norm, architecture_.norm_eps, in.normed.view().row(i)); });
  layer.qkv.multiply(in.normed.view(), in.qkv.view());
  if (layer.qkv_bias.empty() && layer.q_norm.empty() && layer.k_norm.empty()) return in;
  for_rows(n, [&](std::int64_t i) {
    const std::span<float> row = in.qkv.view().row(i);
    add(row, layer.qkv_bias);
    const auto dim = static_cast<std::size_t>(c.k_dim);
    for (int h = 0; h < c.q_heads + c.kv_heads; ++h) {
      const std::vector<float>& w = h < c.q_heads ? layer.q_norm : layer.k_norm;
      const std::span<float> head = row.subspan(static_cast<std::size_t>(h) * dim, dim);
      if (!w.empty()) rms_norm(head, w, architecture_.norm_eps, head);
    }
  });
  return in;
}

namespace {

/// [tokens, heads, dim] of some columns to [heads, tokens, dim].
Array heads_first(View<const float> rows, std::int64_t column, int heads, int dim) {
  Array to({heads, rows.dim(0), dim});
  for (std::int64_t i = 0; i < rows.dim(0); ++i)
    for (int h = 0; h < heads; ++h)
      std::copy_n(rows.data() + i * rows.stride(0) + column + std::int64_t{h} * dim, dim, to.view().row(h, i).begin());
  return to;
}

}  // namespace

void Transformer::attend_segment(int index, const AttentionInputs& in, std::int64_t row, const Segment& s, View<float> to) const {
  const LayerClass& c = layer_class(index);
  const View<const float> qkv = in.qkv.view(), normed = in.normed.view(), rows = qkv.slice(0, row, s.tokens);
  const std::int64_t q = std::int64_t{c.q_heads} * c.k_dim, k = std::int64_t{c.kv_heads} * c.k_dim;
  const Array queries = heads_first(rows, 0, c.q_heads, c.k_dim), keys = heads_first(rows, q, c.kv_heads, c.k_dim);
  const Array values = heads_first(rows, q + k, c.kv_heads, c.v_dim);
  std::vector<std::int64_t> positions(static_cast<std::size_t>(s.tokens));
  std::iota(positions.begin(), positions.end(), s.first_position);
  Array out({c.q_heads, s.tokens, c.v_dim});
  s.attention->forward(index, {.q = queries.view(), .k = keys.view(), .v = values.view(),
                               .positions = View<const std::int64_t>(positions.data(), {s.tokens}),
                               .hidden = normed.slice(0, row, s.tokens)},
                       out.view());
  for (std::int64_t i = 0; i < s.tokens; ++i)
    for (int h = 0; h < c.q_heads; ++h)
      std::ranges::copy(out.view().row(h, i), to.row(i).begin() + std::ptrdiff_t{h} * c.v_dim);
}

Array Transformer::attend(int index, const AttentionInputs& in, std::span<const Segment> batch) const {
  const LayerClass& c = layer_class(index);
  Array attended({in.qkv.dims()[0], std::int64_t{c.q_heads} * c.v_dim});
  std::vector<std::int64_t> first{0};
  for (const Segment& s : batch) first.push_back(first.back() + s.tokens);
  KV_ASSERT(first.back() == attended.dims()[0], "segments cover the batch");
  const auto run = [&](std::int64_t which) {
    const auto at = static_cast<std::size_t>(which);
    attend_segment(index, in, first[at], batch[at], attended.view().slice(0, first[at], batch[at].tokens));
  };
  if (batch.size() == 1)
    run(0);  // threads share the heads
  else
    parallel_for(static_cast<std::int64_t>(batch.size()), run);
  return attended;
}

void Transformer::finish_layer(int index, View<const float> attended, View<float> x) const {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  const std::int64_t n = x.dim(0);
  const float eps = architecture_.norm_eps;
  Array y({n, hidden()}), normed({n, hidden()});
  layer.o.multiply(attended, y.view());
  for_rows(n, [&](std::int64_t i) {
    const std::span<float> row = y.view().row(i);
    add(row, layer.o_bias);
    if (!layer.post_attention_norm.empty()) rms_norm(row, layer.post_attention_norm, eps, row);
    add(x.row(i), row);
    rms_norm(x.row(i), layer.ffn_norm, eps, normed.view().row(i));
  });
  const std::int64_t width = layer.down.in();
  Array wide({n, 2 * width});
  layer.gate_up.multiply(normed.view(), wide.view());
  for_rows(n, [&](std::int64_t i) {
    const std::span<float> row = wide.view().row(i);
    gate(architecture_.activation, row.first(static_cast<std::size_t>(width)), row.subspan(static_cast<std::size_t>(width)));
  });
  layer.down.multiply(View<const float>(wide.view()).slice(1, 0, width), y.view());
  for_rows(n, [&](std::int64_t i) {
    const std::span<float> row = y.view().row(i);
    if (!layer.post_ffn_norm.empty()) rms_norm(row, layer.post_ffn_norm, eps, row);
    add(x.row(i), row);
  });
}

Array Transformer::last_norm(View<const float> x) const {
  Array states({x.dim(0), hidden()});
  for_rows(x.dim(0), [&](std::int64_t i) { rms_norm(x.row(i), last_norm_, architecture_.norm_eps, states.view().row(i)); });
  return states;
}

Array Transformer::forward(std::span<const TokenId> tokens, std::span<const Segment> batch) const {
  Array x = embed(tokens);
  for (int l = 0; l < layers(); ++l) {
    const Array attended = attend(l, attention_inputs(l, x.view()), batch);
    finish_layer(l, attended.view(), x.view());
  }
  return last_norm(x.view());
}

void Transformer::logits(View<const float> states, View<float> out) const { head_.multiply(states, out); }

}  // namespace kvatlas::models

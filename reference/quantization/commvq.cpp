// commvq: keys before RoPE as codewords that a rotation passes through, values as bits of a trained code; one norm a token.
// Source    arXiv 2506.18879, sections 3 and 4; UMass-Embodied-AGI/CommVQ commvq/compress_evaluation.py (both compressors),
//           training/quantize_key_cache.py (codebooks, number of stages)
// Formula   key pairs are sums over stages of codewords [[a, -b], [b, a]], which commute with the rotation of RoPE; k' = ||k|| * sum of codewords;
//           values: bits of a trained encoder, x' = norm * decoder(bits)
// Keeps     every token; keys before RoPE at true positions; up to residual_window of the newest rows stay in the cache's dtype
// Deviates  the first largest logit decides (released: Gumbel noise even when it serves); codewords are packed (released: 16 bits a
//           codeword); keys are rebuilt and rotated (released: tables of a query's products with every code number)
#include <algorithm>
#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/formats/int_codes.hpp"
#include "core/kernels/store.hpp"
#include "core/kernels/transform.hpp"
#include "core/parallel.hpp"
#include "reference/primitives/plans.hpp"
#include "reference/primitives/record_store.hpp"
#include "reference/primitives/row_coder.hpp"
#include "reference/primitives/step.hpp"
#include "reference/primitives/trained.hpp"
#include "reference/quantization/commvq/codes.hpp"

namespace kvatlas::methods {
namespace {

struct Params {
  int stages = 21;
  int entries = 64;
  int v_bits = 2;
  int residual_window = 128;
  static constexpr auto fields() {
    return std::tuple{field(&Params::stages, "stages", "", 1, 64, "codewords of a key; 21 is the 2-bit setting, 11 the 1-bit one"),
                      field(&Params::entries, "entries", "", 2, 64, "code numbers of a pair and stage, a power of two; a codeword names two"),
                      field(&Params::v_bits, "v_bits", "bit", 1, 2, "code bits a value channel"),
                      field(&Params::residual_window, "residual_window", "token", 1, 4096, "rows are coded in flushes of this many")};
  }
};

int word_bits(const Params& p) {
  int bits = 0;
  while ((1 << bits) < p.entries) ++bits;
  return 2 * bits;
}

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  if ((p.entries & (p.entries - 1)) != 0) return cat("entries is ", p.entries, ", must be a power of two: a codeword has whole bits");
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    if (c.k_dim % 2 != 0) return cat("head_dim is ", c.k_dim, ", must be even: channels are complex numbers");
    if (c.rope.rotary_dim != 0 && (c.rope.rotary_dim != c.k_dim || c.rope.layout != RopeLayout::half_split))
      return cat("rotary_dim is ", c.rope.rotary_dim, " of ", c.k_dim, c.rope.layout == RopeLayout::half_split ? "" : ", interleaved",
                 ", must be the whole head in half-split pairs, or 0");
    if (c.kv_heads * c.v_dim % 2 != 0) return cat("values have ", c.kv_heads * c.v_dim, " channels, must have an even number: four logits give two bits");
  }
  return why_not_sides("commvq", shape, kWholeRows);
}

/// All kv heads of a token are one row: their norm is common.
int joined_width(const LayerClass& c, Side side) { return c.kv_heads * dim_of(c, side); }

RecordLayout layout(const Params& p, const LayerClass& c, Side side) {
  const std::int64_t width = joined_width(c, side);
  RecordLayout l{.ageing = Ageing::flush, .residual = Tokens(p.residual_window), .joined = true};
  if (side == Side::key) {
    const std::int64_t bits = std::int64_t{p.stages} * word_bits(p) * c.kv_heads;
    l.parts = {{"indices", to_bytes_ceil(Bits(bits)).value, Scope::token}, {"norms", 2, Scope::token}};
    l.state = {{"codebooks", std::int64_t{2} * p.stages * p.entries * width, Scope::layer}};  // fp16: `entries` complex numbers a pair and stage
    l.format = {.kind = CodeKind::table, .bits = static_cast<int>(ceil_div(bits, width))};
  } else {
    const std::int64_t bits = width * p.v_bits;
    l.parts = {{"codes", to_bytes_ceil(Bits(bits)).value, Scope::token}, {"norms", 2, Scope::token}};
    l.state = {{"codebooks", 2 * (bits * width + width), Scope::layer}};  // fp16: decoder matrix, channel scales
    l.format = {.kind = CodeKind::table, .bits = p.v_bits};
  }
  return l;
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  return record_ledger(shape, h, [&](const LayerClass& c, Side side) { return layout(p, c, side); });
}

SideLayout side_layout_of(const Params& p, const LayerClass& c, Side side, Tokens context) { return layout(p, c, side).side(context); }

Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan = side_decode_plan(shape, h, [&](const LayerClass& c, Side side, Tokens context) { return side_layout_of(p, c, side, context); });
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    // Once a step: a query's products with every code number, and the product of the summed code bits with the decoder.
    plan.add(kernels::LowRank{.sequences = h.sequences, .rows = c.q_heads, .rank = c.k_dim, .dim = std::int64_t{2} * p.stages * p.entries, .dtype = shape.dtype, .keep = true}
                 .call(c.count()));
    plan.add(kernels::LowRank{.sequences = h.sequences, .rows = c.q_heads, .rank = joined_width(c, Side::value) * p.v_bits, .dim = c.v_dim, .dtype = shape.dtype, .keep = true}
                 .call(c.count()));
  }
  return plan;
}

/// The released kernels are those of the 1-bit setting. At 2 bits what was coded is decoded once and kept in the dtype: every
/// step joins the newest rows to both sides by a copy and rotates all keys, as a plain cache would.
Plan released_decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  if (p.v_bits == 1) return decode_plan(p, shape, h, counts);
  Plan plan = dense_decode_plan(shape, h);
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    const std::int64_t heads = std::int64_t{h.sequences} * c.kv_heads;
    plan.add(kernels::Copy{.segments = heads, .bytes = h.tokens().value * (c.k_dim + c.v_dim) * bytes_of(shape.dtype)}.call(c.count()));
    plan.add(kernels::RopeApply{.heads = heads, .rows = h.tokens().value, .dim = c.k_dim, .dtype = shape.dtype}.call(c.count()));
  }
  return plan;
}

Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  return side_prefill_plan(shape, h, [&](const LayerClass& c, Side side, Tokens context) { return side_layout_of(p, c, side, context); });
}

/// fp16 must hold it.
const NamedTensor& tensor(const TensorMap& trained, int layer, const char* part, std::vector<std::int64_t> dims) {
  const NamedTensor& t = trained_tensor(trained, layer, part, dims);
  for (const float x : t.values)
    if (std::fabs(x) > 65504.0F) throw InvalidArgument(cat("tensor \"", trained_name(layer, part), "\" holds ", x, ", must be at most 65504"));
  return t;
}

/// fp16 as stored, and the float32 that they mean.
std::vector<std::byte> to_fp16(std::initializer_list<const NamedTensor*> tensors) {
  std::vector<std::byte> bytes;
  for (const NamedTensor* t : tensors) {
    const std::size_t at = bytes.size();
    bytes.resize(at + 2 * t->values.size());
    num::store(Dtype::f16, t->values, std::span(bytes).subspan(at));
  }
  return bytes;
}
NamedTensor rounded(NamedTensor t) {
  num::round_to(Dtype::f16, t.values);
  return t;
}

std::function<std::optional<std::string>(std::span<const std::byte>)> same_as(std::vector<std::byte> state) {
  return [state = std::move(state)](std::span<const std::byte> saved) -> std::optional<std::string> {
    if (std::ranges::equal(saved, state)) return std::nullopt;
    return "codebooks are others than those of the trained file";
  };
}

RecordCodec key_codec(const Params& p, const LayerClass& c, const TensorMap& trained, int layer) {
  const NamedTensor& given = tensor(trained, layer, "key_codebooks", {c.kv_heads, p.stages, 2 * p.entries, c.k_dim / 2});
  const auto books = std::make_shared<const NamedTensor>(rounded(given));
  const int bits = word_bits(p), heads = c.kv_heads, dim = c.k_dim, stages = p.stages, entries = p.entries;
  const auto book_of = [=](int head) {
    return commvq::KeyBook{View<const float>(books->values.data(), {heads, stages, 2 * entries, dim / 2})[head]};
  };
  RecordCodec codec{
      .encode = [=](const RecordPlace&, View<const float> rows, std::span<std::byte> record) {
        std::vector<float> row(rows.row(0).begin(), rows.row(0).end());
        for (float& x : row) x = num::clamp(x, -65504.0F, 65504.0F);
        const float norm = num::round_to(Dtype::f16, num::min(std::sqrt(num::lane_dot(row, row)), 65504.0F));
        std::ranges::fill(record, std::byte{0});
        for (float& x : row) x = norm == 0.0F ? 0.0F : x / norm;
        for (int h = 0; h < heads; ++h) {
          const auto words = commvq::encode_key(book_of(h), std::span(row).subspan(static_cast<std::size_t>(h * dim), static_cast<std::size_t>(dim)));
          for (int s = 0; s < stages; ++s) put_bits(record, (std::int64_t{h} * stages + s) * bits, bits, words[static_cast<std::size_t>(s)]);
        }
        put_fp16(record, record.size() - 2, norm);
      },
      .decode = [=](const RecordPlace&, std::span<const std::byte> record, View<float> rows) {
        const auto row = rows.row(0);
        const float norm = get_fp16(record, record.size() - 2);
        for (int h = 0; h < heads; ++h) {
          std::vector<std::uint32_t> words;
          for (int s = 0; s < stages; ++s) words.push_back(get_bits(record, (std::int64_t{h} * stages + s) * bits, bits));
          commvq::decode_key(book_of(h), words, row.subspan(static_cast<std::size_t>(h * dim), static_cast<std::size_t>(dim)));
        }
        for (float& x : row) x = x * norm;
      }};
  codec.initial_state = to_fp16({&given});
  codec.state_fault = same_as(codec.initial_state);
  return codec;
}

/// The trained tensors of a value network, kept alive for the views over them.
struct OwnedNet {
  NamedTensor scale, ln_weight, ln_bias, w1, b1, w2, b2, embedding;
  commvq::ValueNet view() const {
    return {.channel_scale = scale.values, .ln_weight = ln_weight.values, .ln_bias = ln_bias.values, .w1 = {w1.values.data(), {w1.dims[0], w1.dims[1]}},
            .w2 = {w2.values.data(), {w2.dims[0], w2.dims[1]}}, .b1 = b1.values, .b2 = b2.values, .embedding = {embedding.values.data(), {embedding.dims[0], embedding.dims[1]}}};
  }
};

RecordCodec value_codec(const Params& p, const LayerClass& c, const TensorMap& trained, int layer) {
  const std::int64_t width = joined_width(c, Side::value), bits = width * p.v_bits;
  const NamedTensor& w1 = tensor(trained, layer, "value_w1", {0, width});
  const std::int64_t hidden = w1.dims[0];
  const NamedTensor &scale = tensor(trained, layer, "value_scale", {width}), &embedding = tensor(trained, layer, "value_embedding", {bits, width});
  for (const float s : scale.values)
    if (s < 0.0F) throw InvalidArgument(cat("tensor \"", trained_name(layer, "value_scale"), "\" holds ", s, ", must not be negative"));
  const auto net = std::make_shared<const OwnedNet>(OwnedNet{.scale = rounded(scale), .ln_weight = tensor(trained, layer, "value_ln_weight", {width}),
                                                             .ln_bias = tensor(trained, layer, "value_ln_bias", {width}), .w1 = w1,
                                                             .b1 = tensor(trained, layer, "value_b1", {hidden}),
                                                             .w2 = tensor(trained, layer, "value_w2", {2 * bits, hidden}),
                                                             .b2 = tensor(trained, layer, "value_b2", {2 * bits}), .embedding = rounded(embedding)});
  RecordCodec codec{
      .encode = [net](const RecordPlace&, View<const float> rows, std::span<std::byte> record) {
        std::vector<float> row(rows.row(0).begin(), rows.row(0).end());
        for (float& x : row) x = num::clamp(x, -65504.0F, 65504.0F);
        const commvq::ValueCode code = commvq::encode_value(net->view(), row);
        num::pack(code.bits, 1, record.first(record.size() - 2));
        put_fp16(record, record.size() - 2, code.norm);
      },
      .decode = [net, bits](const RecordPlace&, std::span<const std::byte> record, View<float> rows) {
        std::vector<std::uint8_t> code(static_cast<std::size_t>(bits));
        num::unpack(record.first(record.size() - 2), 1, code);
        commvq::decode_value(net->scale.values, net->view().embedding, code, get_fp16(record, record.size() - 2), rows.row(0));
      }};
  codec.initial_state = to_fp16({&embedding, &scale});
  codec.state_fault = same_as(codec.initial_state);
  return codec;
}

class Cache final : public KvCache {
 public:
  Cache(const Params& p, const CacheShape& shape, const TensorMap& trained)
      : p_(p), shape_(shape), trained_(trained), rotary_(shape_), layers_(fresh()) {}

  void forward(int layer, const StepInput& step, View<float> out) override {
    const PreparedStep s = prepare_step(shape_, rotary_, layer, step, out);
    Layer& l = at(layer);
    const LayerClass& c = *l.c;
    for (std::int64_t i = 0; i < s.n; ++i)
      if (step.positions(i) != l.keys->size().value + i && c.rope.rotary_dim > 0 && step.mask.kind != MaskKind::tree)
        throw Unsupported(cat("commvq: token ", l.keys->size().value + i, " is at position ", step.positions(i), ", must be at its own: stored keys are rotated by their place"));
    if (step.mask.kind == MaskKind::tree && c.rope.rotary_dim > 0) throw Unsupported("commvq: the branches of a tree would need one place twice");
    const auto append = [&](SideStore& to, const Array& rows) {
      const Array joined = joined_heads(rows.view());
      to.append({joined.values().data(), {1, joined.dims()[0], joined.dims()[1]}});
    };
    append(*l.keys, s.k_pre);
    append(*l.values, s.v);
    const std::int64_t rows = l.keys->size().value;
    Array k({rows, std::int64_t{c.kv_heads} * c.k_dim}), v({rows, std::int64_t{c.kv_heads} * c.v_dim});
    l.keys->read(0, 0, k.view());
    l.values->read(0, 0, v.view());
    std::vector<Rotation> turns;
    const RopeTable& table = rotary_.of(layer);
    for (std::int64_t t = 0; c.rope.rotary_dim > 0 && t < rows; ++t) turns.push_back(table.rotation(t));
    parallel_for(c.kv_heads, [&](std::int64_t h) {
      Array k_head({rows, c.k_dim}), v_head({rows, c.v_dim});
      for (std::int64_t t = 0; t < rows; ++t) {
        const auto key = k_head.view().row(t);
        std::ranges::copy(k.view().row(t).subspan(static_cast<std::size_t>(h * c.k_dim), key.size()), key.begin());
        if (c.rope.rotary_dim > 0) {
          table.rotate(key, turns[static_cast<std::size_t>(t)]);
          num::round_to(shape_.dtype, key);
        }
        std::ranges::copy(v.view().row(t).subspan(static_cast<std::size_t>(h * c.v_dim), static_cast<std::size_t>(c.v_dim)), v_head.view().row(t).begin());
      }
      attend_new(c, static_cast<int>(h), s.q.view(), View<const float>(k_head.view()), View<const float>(v_head.view()), step.mask, step.sinks, out);
    });
    for (SideStore* store : {l.keys.get(), l.values.get()}) store->settle(prompt_done_);
  }

  void end_prefill() override {
    prompt_done_ = true;
    for (Layer& l : layers_)
      for (SideStore* store : {l.keys.get(), l.values.get()}) store->settle(true);
  }
  void check_crop(Tokens length) const override {
    if (length.value < 0) throw InvalidArgument(cat("length is ", length.value, ", must be >= 0"));
    for (const Layer& l : layers_)
      for (const SideStore* store : {l.keys.get(), l.values.get()}) store->check_crop(length);
  }
  void crop(Tokens length) override {
    check_crop(length);
    for (Layer& l : layers_)
      for (SideStore* store : {l.keys.get(), l.values.get()}) store->crop(length);
  }
  std::vector<NamedBuffer> buffers() const override {
    std::vector<NamedBuffer> out;
    for (const Layer& l : layers_) {
      l.keys->buffers(cat("layer", l.index, "/k_"), out);
      l.values->buffers(cat("layer", l.index, "/v_"), out);
    }
    return out;
  }
  void load(std::span<const NamedBuffer> saved) override {
    std::vector<Layer> loaded = fresh();
    for (Layer& l : loaded) {
      l.keys->load(cat("layer", l.index, "/k_"), saved);
      l.values->load(cat("layer", l.index, "/v_"), saved);
      if (l.keys->size() != l.values->size())
        throw InvalidArgument(cat("layer ", l.index, " has ", l.keys->size().value, " keys and ", l.values->size().value, " values, must be as many"));
    }
    layers_ = std::move(loaded);
    prompt_done_ = true;
  }
  Tokens kept(int layer, int) const override { return const_cast<Cache*>(this)->at(layer).keys->size(); }

 private:
  struct Layer {
    int index = 0;
    const LayerClass* c = nullptr;
    std::unique_ptr<SideStore> keys, values;
  };
  std::vector<Layer> fresh() const {
    std::vector<Layer> layers;
    for (const LayerClass& c : shape_.classes)
      for (const int l : c.layers) {
        if (c.kind != RowKind::kv) continue;
        layers.push_back({.index = l, .c = &c,
                          .keys = std::make_unique<RecordStore>(1, joined_width(c, Side::key), Side::key, shape_.dtype, layout(p_, c, Side::key), key_codec(p_, c, trained_, l)),
                          .values = std::make_unique<RecordStore>(1, joined_width(c, Side::value), Side::value, shape_.dtype, layout(p_, c, Side::value),
                                                                  value_codec(p_, c, trained_, l))});
      }
    return layers;
  }
  Layer& at(int layer) {
    for (Layer& l : layers_)
      if (l.index == layer) return l;
    throw InvalidArgument(cat("layer is ", layer, ", must be a layer that caches rows"));
  }

  Params p_;
  CacheShape shape_;
  TensorMap trained_;
  Rotary rotary_;
  std::vector<Layer> layers_;
  bool prompt_done_ = false;
};

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs& inputs) {
  if (const auto reason = why_not(p, shape)) throw Unsupported(cat("commvq: ", *reason));
  if (inputs.trained == nullptr)
    throw Unsupported("commvq needs a trained file: tensors layer<l>.key_codebooks [kv_heads, stages, 2 entries, head_dim / 2] and layer<l>.value_{scale, ln_weight, ln_bias, w1, b1, w2, b2, "
                      "embedding}, as training/quantize_key_cache.py and the value compressor of UMass-Embodied-AGI/CommVQ write them");
  return std::make_unique<Cache>(p, shape, *inputs.trained);
}

constexpr Need kNeeds[] = {Need::trained_file};

}  // namespace

extern constinit const Method commvq{
    .slug = "commvq", .name = "CommVQ", .family = Family::quantization,
    .paper = {.title = "CommVQ: Commutative Vector Quantization for KV Cache Compression", .url = "https://arxiv.org/abs/2506.18879", .year = 2025},
    .params = specs<Params>, .needs = kNeeds,
    .serving = {.prefix_cache = {Works::partly, "a shared prefix ends at a multiple of residual_window"},
                .paged_cache = {Works::partly, "pages must hold whole flushes, plain rows live beside them"},
                .chunked_prefill = {Works::yes, "rows stay plain until the prompt ends, so the peak is the dense cache"},
                .cuda_graphs = {Works::partly, "the flush every residual_window steps is a second graph"},
                .tensor_parallelism = {Works::no, "a norm is common to all heads of a token, and the value code mixes them"},
                .speculation = {Works::partly, "drafted chains can be taken back until the next flush; trees are refused"},
                .multi_turn = {Works::partly, "a later turn attends to coded rows"}},
    .notes = "Codebooks and decoder are fp16 state of a layer and count once for all sequences; the value encoder belongs to the model's weights and is not counted. Norms are fp16 and a key is divided by its "
             "stored norm. Twelve bits a codeword at 64 entries; the released code stores 16. The number of stages of the 1-bit model is inferred. Rotated keys are rounded to the dtype of the cache, as those of "
             "`full` are. Plans count whole bits a channel beside the products of a query with all code numbers.",
    .why_not = typed<why_not>, .needs_unrotated = always_unrotated, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .released_decode_plan = typed<released_decode_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods

// transmla: attention of a trained model with grouped or full heads, rewritten as attention over one shared latent row.
// Source    sheet transmla; Meng et al., arXiv 2502.07864, sections 4.1 (rotation of rotary pairs), 4.2 (balance, joint PCA)
// Keeps     per token and layer a latent of kv_lora_rank values and one rotary key of qk_rope_dim values for all heads
// Deviates  products in float64 from the given weights; RMSNorms that the official code may insert are left out, and
//           queries stay of full rank
//
// Tensors in    w_q [q_heads * head_dim, hidden], w_k, w_v [kv_heads * head_dim, hidden], w_o [hidden, q_heads * head_dim],
//               calibration [..., hidden] (inputs of the layer); b_q, b_k, b_v all three or none
// Tensors out   q [q_heads * (head_dim + qk_rope_dim), hidden], kv_a [kv_lora_rank + qk_rope_dim, hidden],
//               kv_b [q_heads * (head_dim + v_dim), kv_lora_rank], o; q_bias, kv_a_bias where there were biases
#include <algorithm>
#include <cmath>

#include "core/errors.hpp"
#include "core/rope.hpp"
#include "reference/architecture/transmla/steps.hpp"
#include "reference/method.hpp"
#include "reference/primitives/plans.hpp"

namespace kvatlas::methods {
namespace {

using linalg::Matrix;

constexpr int kPaperRank = 512;

struct Params {
  int kv_lora_rank = 0;
  int qk_rope_dim = 64;
  int freqfold = 4;
  double balance_ratio = 1.0;
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::kv_lora_rank, "kv_lora_rank", "value", 0, 16384,
              "latent values of a token; 0 = the paper's 512, or all that keys and values have beside the rotary key if fewer"),
        field(&Params::qk_rope_dim, "qk_rope_dim", "value", 2, 512, "values of the shared key that keep their rotation"),
        field(&Params::freqfold, "freqfold", "frequency", 1, 256, "neighbouring frequencies that are treated as one"),
        field(&Params::balance_ratio, "balance_ratio", "", 0.01, 100.0, "weight of the values' energy when keys and values are balanced")};
  }
};

/// Keys and values that are not in the shared rotary key: more latent values than these carry nothing.
int joint_width(const Params& p, const LayerClass& c) { return c.kv_heads * (c.k_dim + c.v_dim) - p.qk_rope_dim; }

int rank_of(const Params& p, const LayerClass& c) {
  return p.kv_lora_rank > 0 ? p.kv_lora_rank : std::min(kPaperRank, joint_width(p, c));
}

std::optional<std::string> why_not_class(const Params& p, const LayerClass& c) {
  const RopeSpec& rope = c.rope;
  if (c.kind == RowKind::latent) return "layers already cache latent rows; there is nothing to convert";
  if (c.kind == RowKind::pooled) return "pooled rows stand for several tokens and cannot be projected again";
  if (c.alibi) return "a linear position bias by head cannot be carried by one shared row";
  if (rope.rotary_dim != c.k_dim || rope.first_channel != 0)
    return cat("rotary_dim is ", rope.rotary_dim, ", must be head_dim (", c.k_dim, "): every key channel belongs to a rotary pair");
  if (rope_attention_factor(rope) != 1.0)
    return cat("attention_factor is ", rope_attention_factor(rope), ", must be 1: channels that lose their rotation would lose the factor");
  if (c.k_dim % p.qk_rope_dim != 0 || p.qk_rope_dim % 2 != 0)
    return cat("qk_rope_dim is ", p.qk_rope_dim, ", must be even and divide head_dim (", c.k_dim, ")");
  const int collapse = c.k_dim / p.qk_rope_dim;
  if (rope.scaling == RopeScaling::yarn && collapse > 1)
    return cat("qk_rope_dim is ", p.qk_rope_dim, ", must be head_dim (", c.k_dim, ") with yarn scaling, whose ramp counts rotary pairs");
  if (rope.scaling == RopeScaling::ntk && collapse > 1 && p.qk_rope_dim < 4)
    return "qk_rope_dim is 2, must be at least 4 with ntk scaling";
  if (p.freqfold % collapse != 0 || c.k_dim / 2 % p.freqfold != 0)
    return cat("freqfold is ", p.freqfold, ", must be a multiple of head_dim / qk_rope_dim (", collapse, ") and divide head_dim / 2 (", c.k_dim / 2, ")");
  if (joint_width(p, c) < 1)
    return cat("qk_rope_dim is ", p.qk_rope_dim, ", must leave keys or values for the latent (", c.kv_heads * (c.k_dim + c.v_dim), " in all)");
  if (p.kv_lora_rank > joint_width(p, c))
    return cat("kv_lora_rank is ", p.kv_lora_rank, ", must be at most the keys and values beside the rotary key (", joint_width(p, c), ")");
  return std::nullopt;
}

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  for (const LayerClass& c : shape.classes)
    if (c.kind != RowKind::state && c.kind != RowKind::none)
      if (auto reason = why_not_class(p, c)) return reason;
  return std::nullopt;
}

to_latent::Widths widths(const Params& p, const LayerClass& c) {
  return {.q_heads = static_cast<std::size_t>(c.q_heads), .kv_heads = static_cast<std::size_t>(c.kv_heads),
          .k_dim = static_cast<std::size_t>(c.k_dim), .v_dim = static_cast<std::size_t>(c.v_dim),
          .rope_dim = static_cast<std::size_t>(p.qk_rope_dim), .freqfold = static_cast<std::size_t>(p.freqfold), .layout = c.rope.layout};
}

/// The class of latent rows that a class of keys and values becomes.
LayerClass latent_class(const Params& p, const LayerClass& c) {
  LayerClass latent = c;
  const int rank = rank_of(p, c);
  latent.kind = RowKind::latent;
  latent.kv_heads = 1;
  latent.k_dim = rank + p.qk_rope_dim;
  latent.v_dim = rank;
  latent.score_scale = to_latent::latent_score_scale(widths(p, c));
  latent.rope.first_channel = rank;
  latent.rope.layout = RopeLayout::interleaved;
  // Pair i of qk_rope_dim / 2 turns as pair i * collapse did: base^(-2 i / qk_rope_dim) is that frequency already, and the
  // scalings that look at a frequency alone follow. Only ntk changes the base by the old width.
  latent.rope.rotary_dim = p.qk_rope_dim;
  if (c.rope.scaling == RopeScaling::ntk) {
    latent.rope.base = ntk_base(c.rope.base, c.rope.rotary_dim, c.rope.factor);
    latent.rope.scaling = RopeScaling::none;
    latent.rope.factor = 1.0;
  }
  return latent;
}

CacheShape converted(const Params& p, const CacheShape& shape) {
  CacheShape out = shape;
  for (LayerClass& c : out.classes)
    if (c.kind == RowKind::kv) c = latent_class(p, c);
  return out;
}

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  return dense_ledger(converted(p, shape), h);
}

Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  return dense_decode_plan(converted(p, shape), h);
}

Plan prefill_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  return dense_prefill_plan(converted(p, shape), h);
}

/// A weight [outputs, hidden] with the bias as a last column where the layer has biases.
Matrix weight(const TensorMap& tensors, const char* name, const char* bias, std::int64_t outputs, std::int64_t hidden, bool with_bias) {
  const auto at = tensors.find(name);
  if (at == tensors.end()) throw InvalidArgument(cat("weights have no tensor \"", name, "\""));
  const NamedTensor& t = at->second;
  if (t.dims != std::vector<std::int64_t>{outputs, hidden} || static_cast<std::int64_t>(t.values.size()) != outputs * hidden)
    throw InvalidArgument(cat(name, " must be [", outputs, ", ", hidden, "]"));
  Matrix out(static_cast<std::size_t>(outputs), static_cast<std::size_t>(hidden) + (with_bias ? 1 : 0));
  for (std::size_t i = 0; i < out.rows(); ++i)
    std::copy_n(t.values.begin() + static_cast<std::ptrdiff_t>(i) * hidden, hidden, out.row(i).begin());
  if (with_bias) {
    const NamedTensor& b = tensors.find(bias)->second;
    if (static_cast<std::int64_t>(b.values.size()) != outputs) throw InvalidArgument(cat(bias, " has ", b.values.size(), " values, must have ", outputs));
    for (std::size_t i = 0; i < out.rows(); ++i) out(i, out.cols() - 1) = b.values[i];
  }
  linalg::require_finite(out, name);
  return out;
}

/// Stores the first `hidden` columns under `name` and a bias column, if there is one, under `bias`.
void put(TensorMap& tensors, const char* name, const char* bias, const Matrix& a, std::size_t hidden) {
  const auto floats = [](const Matrix& m) {
    return NamedTensor{{static_cast<std::int64_t>(m.rows()), static_cast<std::int64_t>(m.cols())}, linalg::to_array(m).values()};
  };
  tensors[name] = floats(to_latent::columns_of(a, 0, hidden));
  if (a.cols() > hidden) tensors[bias] = {{static_cast<std::int64_t>(a.rows())}, linalg::to_array(to_latent::columns_of(a, hidden, 1)).values()};
}

Conversion convert(const Params& p, const CacheShape& shape, const TensorMap& tensors) {
  if (const auto reason = why_not(p, shape)) throw Unsupported(cat("transmla: ", *reason));
  if (shape.classes.size() != 1 || shape.classes.front().kind != RowKind::kv)
    throw InvalidArgument(cat("shape has ", shape.classes.size(), " layer classes, must have the one class of keys and values that the weights belong to"));
  const LayerClass& c = shape.classes.front();
  const to_latent::Widths w = widths(p, c);

  const auto calibration = tensors.find("calibration");
  if (calibration == tensors.end() || calibration->second.dims.empty() || calibration->second.values.empty())
    throw InvalidArgument("weights have no tensor \"calibration\" of layer inputs [..., hidden]");
  const std::int64_t hidden = calibration->second.dims.back();
  if (hidden < 1 || static_cast<std::int64_t>(calibration->second.values.size()) % hidden != 0)
    throw InvalidArgument(cat("calibration has ", calibration->second.values.size(), " values, must be whole rows of ", hidden));
  const auto biases = std::ranges::count_if(std::initializer_list<const char*>{"b_q", "b_k", "b_v"}, [&](const char* n) { return tensors.contains(n); });
  if (biases != 0 && biases != 3) throw InvalidArgument(cat("weights have ", biases, " of the biases b_q, b_k, b_v, must have all three or none"));
  const bool with_bias = biases == 3;

  const Matrix w_q = weight(tensors, "w_q", "b_q", std::int64_t{c.q_heads} * c.k_dim, hidden, with_bias);
  const Matrix w_k = weight(tensors, "w_k", "b_k", std::int64_t{c.kv_heads} * c.k_dim, hidden, with_bias);
  const Matrix w_v = weight(tensors, "w_v", "b_v", std::int64_t{c.kv_heads} * c.v_dim, hidden, with_bias);
  const Matrix w_o = weight(tensors, "w_o", "", hidden, std::int64_t{c.q_heads} * c.v_dim, false);
  Matrix inputs(calibration->second.values.size() / static_cast<std::size_t>(hidden), w_q.cols());
  for (std::size_t t = 0; t < inputs.rows(); ++t) {
    std::copy_n(calibration->second.values.begin() + static_cast<std::ptrdiff_t>(t) * hidden, hidden, inputs.row(t).begin());
    if (with_bias) inputs(t, inputs.cols() - 1) = 1.0;
  }
  linalg::require_finite(inputs, "calibration");

  const Matrix keys = linalg::matmul(inputs, linalg::transpose(w_k)), values = linalg::matmul(inputs, linalg::transpose(w_v));
  const Matrix rotation = to_latent::rope_rotation(w, keys);
  const to_latent::RotatedKeys rotated = to_latent::rotate_keys(w, rotation, w_k);
  const Matrix rotated_keys = linalg::matmul(keys, linalg::transpose(rotation));
  const double ratio = to_latent::balance(w, rotated_keys, values, p.balance_ratio);

  const std::size_t plain = w.keys() - w.rope_dim;
  Matrix joint(inputs.rows(), plain + w.values());
  for (std::size_t t = 0; t < joint.rows(); ++t) {
    for (std::size_t i = 0; i < plain; ++i) joint(t, i) = rotated_keys(t, w.rope_dim + i) / ratio;
    std::ranges::copy(values.row(t), joint.row(t).begin() + static_cast<std::ptrdiff_t>(plain));
  }
  const Matrix axes = to_latent::principal_axes(joint);
  const double score_scale = c.score_scale > 0 ? c.score_scale : 1.0 / std::sqrt(static_cast<double>(c.k_dim));
  const to_latent::Latent latent = to_latent::latent_weights(
      w, {.w_q = w_q, .w_v = w_v, .keys = rotated, .axes = axes, .ratio = ratio, .score_scale = score_scale,
          .rank = static_cast<std::size_t>(rank_of(p, c))});

  Conversion out{.weights = {}, .shape = converted(p, shape)};
  put(out.weights, "q", "q_bias", latent.q, static_cast<std::size_t>(hidden));
  put(out.weights, "kv_a", "kv_a_bias", latent.kv_a, static_cast<std::size_t>(hidden));
  put(out.weights, "kv_b", "", latent.kv_b, latent.kv_b.cols());
  put(out.weights, "o", "", w_o, w_o.cols());
  return out;
}

constexpr Need kNeeds[] = {Need::query_weights, Need::output_weights, Need::calibration};

}  // namespace

extern constinit const Method transmla{
    .slug = "transmla", .name = "TransMLA", .family = Family::architecture,
    .paper = {.title = "TransMLA: Multi-Head Latent Attention Is All You Need", .url = "https://arxiv.org/abs/2502.07864", .year = 2025},
    .params = specs<Params>, .needs = kNeeds,
    .serving = {.tensor_parallelism = {Works::partly, "every rank holds the whole latent row: one row serves all heads"}},
    .notes = "Lossless where no channel loses its rotation, freqfold is 1 and the rank is full; everywhere else the removed "
             "rotations and the cut latent change the outputs. The scale of the values' norm leaves out the first qk_rope_dim "
             "channels, as the official code does. Plans are those of attention over latent rows; the up-projections of keys "
             "and values are absorbed into the model's own products and are not in the plan.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<prefill_plan>, .convert = typed<convert>,
};

}  // namespace kvatlas::methods

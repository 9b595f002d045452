// Attention kernels: decode over a split cache, span merge, prompt attention, shared-prefix attention and its merge.
#pragma once

#include "core/kernels/entry.hpp"
#include "core/span_rule.hpp"

namespace kvatlas::kernels {

/// One decode step of one layer: each query head attends to `tokens` stored entries of its kv head.
/// Keys and values are read once for all query heads of a group; partial results are written once per span.
struct DecodeAttention {
  std::int64_t sequences = 1;
  int kv_heads = 1;
  int q_per_kv = 1;
  int k_dim = 0;
  int v_dim = 0;
  Dtype dtype = Dtype::bf16;
  Tokens tokens{0};            // entries attended to, per sequence and kv head
  Tokens k_plain{0};           // of those, keys kept in the dtype (residual window); the rest is in k_format
  Tokens v_plain{0};
  CodeFormat k_format = CodeFormat::plain(Dtype::bf16);
  CodeFormat v_format = CodeFormat::plain(Dtype::bf16);
  bool latent = false;         // values are a prefix of the key row: one read serves both
  bool rotate_keys = false;    // keys are stored before RoPE and rotated in the kernel
  Tokens run{0};               // entries that lie contiguously (page or chunk of a gathered set); 0 = all
  bool emit_weights = false;   // softmax weights leave the kernel (methods that score by attention)
  int queries = 1;             // query rows per head (speculation verifies several)
  bool partial = false;        // the result is merged with other parts: one span, too, leaves as float32 output, maximum, sum

  KernelCall call(double launches) const {
    const std::int64_t heads = sequences * kv_heads;
    const std::int64_t k_coded = tokens.value - k_plain.value;
    const std::int64_t v_coded = tokens.value - v_plain.value;
    const std::int64_t runs = run.value > 0 ? ceil_div(tokens.value, run.value) : 1;
    const auto side_bytes = [&](const CodeFormat& f, std::int64_t coded, std::int64_t plain, int dim) {
      return f.bytes(coded, dim).value + plain * dim * bytes_of(dtype);
    };
    Entry e(KernelId::decode_attention, Stage::attention, launches);
    e.read(heads * runs, ceil_div(side_bytes(k_format, k_coded, k_plain.value, k_dim), runs));
    if (!latent) e.read(heads * runs, ceil_div(side_bytes(v_format, v_coded, v_plain.value, v_dim), runs));
    const std::int64_t rows = heads * q_per_kv * queries;
    const std::int64_t spans = span_count(tokens.value);
    e.read(rows, std::int64_t{k_dim} * bytes_of(dtype), spans);
    if (spans > 1 || partial) {
      e.write(rows * spans, (std::int64_t{v_dim} + 2) * 4);
    } else {
      e.write(rows, std::int64_t{v_dim} * bytes_of(dtype));
    }
    if (emit_weights) e.write(rows, tokens.value * 4);
    const double pairs = static_cast<double>(rows) * static_cast<double>(tokens.value);
    e.tensor(2.0 * pairs * (k_dim + v_dim));
    e.vector(5.0 * pairs);  // scale, maximum, exponential, sum, conversion of the weight
    if (rotate_keys) e.vector(3.0 * static_cast<double>(heads * tokens.value) * k_dim);
    e.convert(heads * k_coded * k_dim, k_format);
    if (!latent) e.convert(heads * v_coded * v_dim, v_format);
    e.work(heads * spans, sequences).queries(queries).attends(heads, q_per_kv * queries, tokens.value);
    if (tokens.value > span_length(tokens.value)) e.uneven(heads, tokens.value, span_length(tokens.value));
    return e.call_;
  }
};

/// Merges the partial results of all spans in index order; needed when a context has more than one span.
struct SpanMerge {
  std::int64_t rows = 1;  // sequences x query heads x queries
  int v_dim = 0;
  Dtype dtype = Dtype::bf16;
  Tokens tokens{0};

  KernelCall call(double launches) const {
    const std::int64_t spans = span_count(tokens.value);
    Entry e(KernelId::span_merge, Stage::attention, spans > 1 ? launches : 0.0);
    e.read(rows * spans, (std::int64_t{v_dim} + 2) * 4).write(rows, std::int64_t{v_dim} * bytes_of(dtype));
    e.vector(2.0 * static_cast<double>(rows * spans) * v_dim).work(rows, rows);
    return e.call_;
  }
};

/// Causal attention of `chunk` new tokens over `past` cached ones, one layer. `density` is the share of the causal
/// pairs that is computed (sparse prompts). Keys and values count once for the chunk; tiles of 128 query rows re-read
/// them from L2, which the summed sectors show.
struct PrefillAttention {
  std::int64_t sequences = 1;
  int kv_heads = 1;
  int q_per_kv = 1;
  int k_dim = 0;
  int v_dim = 0;
  Dtype dtype = Dtype::bf16;
  Tokens past{0};
  Tokens chunk{0};
  Tokens window{0};   // 0 = all
  double density = 1.0;
  bool latent = false;
  bool partial = false;  // the result is merged with other parts: it leaves as float32 output, maximum, sum

  double pairs() const {
    const double n = static_cast<double>(chunk.value), p = static_cast<double>(past.value);
    const double all = n * p + n * (n + 1) / 2;
    if (window.value <= 0) return all * density;
    const double w = static_cast<double>(window.value);
    // Query i (counted from the sequence start) sees min(i, w) tokens.
    const auto seen = [w](double m) { return m <= w ? m * (m + 1) / 2 : w * (w + 1) / 2 + (m - w) * w; };
    return (seen(p + n) - seen(p)) * density;
  }

  KernelCall call(double launches) const {
    constexpr std::int64_t kQueryTile = 128;
    const std::int64_t heads = sequences * kv_heads;
    const std::int64_t row = std::int64_t{latent ? k_dim : k_dim + v_dim} * bytes_of(dtype);
    const std::int64_t keys = window.value > 0 ? std::min(window.value + chunk.value, past.value + chunk.value)
                                               : past.value + chunk.value;
    const std::int64_t tiles = ceil_div(chunk.value * q_per_kv, kQueryTile);
    Entry e(KernelId::prefill_attention, Stage::attention, launches);
    e.read(heads, keys * row, std::max<std::int64_t>(1, tiles / 2));
    e.read(heads * q_per_kv, chunk.value * k_dim * bytes_of(dtype));
    if (partial) {
      e.write(heads * q_per_kv * chunk.value, (std::int64_t{v_dim} + 2) * 4);
    } else {
      e.write(heads * q_per_kv, chunk.value * v_dim * bytes_of(dtype));
    }
    const double p = pairs() * static_cast<double>(heads * q_per_kv);
    e.tensor(2.0 * p * (k_dim + v_dim)).vector(5.0 * p).work(heads * tiles, sequences).attends(heads, q_per_kv, chunk.value);
    return e.call_;
  }
};

/// All queries of a group over key-value rows that the group shares (Hydragen): a matrix product, rows read once. One query
/// row a head is a decode step, split in spans; the rows of a prompt fill the machine unsplit, in tiles of 128 that re-read
/// keys and values from L2, and leave one partial result each.
struct SharedAttention {
  std::int64_t groups = 1;
  std::int64_t sequences = 1;  // all groups together
  int kv_heads = 1;
  int q_per_kv = 1;
  int k_dim = 0;
  int v_dim = 0;
  Dtype dtype = Dtype::bf16;
  Tokens tokens{0};
  std::int64_t queries = 1;    // query rows per head and sequence: 1 in a decode step, the tail of a prompt

  KernelCall call(double launches) const {
    constexpr std::int64_t kQueryTile = 128;
    const std::int64_t rows = sequences * kv_heads * q_per_kv * queries;
    const std::int64_t tiles = queries > 1 ? ceil_div(rows, groups * kv_heads * kQueryTile) : 1;
    const std::int64_t spans = queries > 1 ? 1 : span_count(tokens.value);
    Entry e(KernelId::shared_attention, Stage::attention, tokens.value > 0 ? launches : 0.0);
    e.read(groups * kv_heads, tokens.value * k_dim * bytes_of(dtype), tiles).read(groups * kv_heads, tokens.value * v_dim * bytes_of(dtype), tiles);
    e.read(rows, std::int64_t{k_dim} * bytes_of(dtype), spans);
    e.write(rows * spans, (std::int64_t{v_dim} + 2) * 4);
    const double pairs = static_cast<double>(rows) * static_cast<double>(tokens.value);
    e.tensor(2.0 * pairs * (k_dim + v_dim)).vector(5.0 * pairs).work(groups * kv_heads * spans * tiles, groups);
    e.attends(groups * kv_heads, static_cast<int>(rows / (groups * kv_heads)), tokens.value);
    if (spans > 1 && tokens.value > span_length(tokens.value)) e.uneven(groups * kv_heads, tokens.value, span_length(tokens.value));
    return e.call_;
  }
};

/// Merges `levels` partial softmax results per query row (float32 output, maximum, sum).
struct StateMerge {
  std::int64_t rows = 1;
  std::int64_t levels = 2;
  int v_dim = 0;
  Dtype dtype = Dtype::bf16;

  KernelCall call(double launches) const {
    Entry e(KernelId::state_merge, Stage::attention, launches);
    e.read(rows * levels, (std::int64_t{v_dim} + 2) * 4).write(rows, std::int64_t{v_dim} * bytes_of(dtype));
    e.vector(3.0 * static_cast<double>(rows * levels) * v_dim).work(rows, rows);
    return e.call_;
  }
};

}  // namespace kvatlas::kernels

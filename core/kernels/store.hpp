// Kernels that put rows into a cache or move them: append, quantize and pack, gather, copy, transfer over a link, RoPE.
#pragma once

#include "core/kernels/entry.hpp"

namespace kvatlas::kernels {

/// Writes the key and value rows of `rows` new tokens per sequence and kv head, coded as the formats say.
struct Append {
  std::int64_t sequences = 1;
  int kv_heads = 1;
  int k_dim = 0;
  int v_dim = 0;       // 0: the row has no separate value
  Dtype dtype = Dtype::bf16;
  CodeFormat k_format = CodeFormat::plain(Dtype::bf16);
  CodeFormat v_format = CodeFormat::plain(Dtype::bf16);
  std::int64_t rows = 1;

  KernelCall call(double launches) const {
    const std::int64_t n = sequences * kv_heads * rows;
    Entry e(KernelId::append, Stage::append, launches);
    e.read(n, std::int64_t{k_dim + v_dim} * bytes_of(dtype));
    e.write(n, k_format.bytes(1, k_dim).value);
    if (v_dim > 0) e.write(n, v_format.bytes(1, v_dim).value);
    e.vector(4.0 * static_cast<double>(n) * (k_dim + v_dim)).work(n, sequences);
    return e.call_;
  }
};

/// Reads `rows` rows of `dim` values in the dtype and writes their codes and scales (a flush of a residual window).
struct QuantizePack {
  std::int64_t heads = 1;   // sequences x kv heads
  std::int64_t rows = 0;
  int dim = 0;
  Dtype dtype = Dtype::bf16;
  CodeFormat format{};

  KernelCall call(double launches) const {
    Entry e(KernelId::quantize_pack, Stage::compress, rows > 0 ? launches : 0.0);
    e.read(heads, rows * dim * bytes_of(dtype)).write(heads, format.bytes(rows, dim).value);
    e.vector(6.0 * static_cast<double>(heads * rows) * dim).convert(heads * rows * dim, format).work(heads * rows, heads);
    return e.call_;
  }
};

/// Moves `rows` scattered rows of `row_bytes` per head to their new places (compaction after a selection).
struct Gather {
  std::int64_t heads = 1;
  std::int64_t rows = 0;
  std::int64_t row_bytes = 0;

  KernelCall call(double launches) const {
    Entry e(KernelId::gather, Stage::compress, rows > 0 ? launches : 0.0);
    e.read(heads, rows * 4).read(heads * rows, row_bytes).write(heads * rows, row_bytes).work(heads * rows, heads);
    return e.call_;
  }
};

/// A plain device-to-device copy (what released code does where a fused kernel needs none).
struct Copy {
  std::int64_t segments = 1;
  std::int64_t bytes = 0;

  KernelCall call(double launches) const {
    Entry e(KernelId::copy, Stage::compress, bytes > 0 ? launches : 0.0);
    e.read(segments, bytes).write(segments, bytes).work(segments, segments);
    return e.call_;
  }
};

/// `copies` transfers of `bytes` each over the link to host or network; HBM sees the bytes once.
struct Transfer {
  std::int64_t copies = 1;
  std::int64_t bytes = 0;

  KernelCall call(double launches) const {
    Entry e(KernelId::transfer, Stage::transfer, bytes > 0 ? launches : 0.0);
    e.read(copies, bytes).work(copies, 1);
    return e.call_;
  }
};

/// Rotates `rows` rows of `dim` values in place (re-rotation after a change of positions).
struct RopeApply {
  std::int64_t heads = 1;
  std::int64_t rows = 0;
  int dim = 0;
  Dtype dtype = Dtype::bf16;

  KernelCall call(double launches) const {
    Entry e(KernelId::rope_apply, Stage::compress, rows > 0 ? launches : 0.0);
    const std::int64_t bytes = std::int64_t{dim} * bytes_of(dtype);
    e.read(heads * rows, bytes).write(heads * rows, bytes).vector(3.0 * static_cast<double>(heads * rows) * dim);
    e.work(heads * rows, heads);
    return e.call_;
  }
};

/// Reads and rewrites a recurrent state of `bytes` per sequence.
struct StateUpdate {
  std::int64_t sequences = 1;
  std::int64_t bytes = 0;

  KernelCall call(double launches) const {
    Entry e(KernelId::state_update, Stage::attention, bytes > 0 ? launches : 0.0);
    e.read(sequences, bytes).write(sequences, bytes).vector(static_cast<double>(sequences * bytes)).work(sequences, sequences);
    return e.call_;
  }
};

}  // namespace kvatlas::kernels

// Kernels that change what rows mean: merges, resampling along tokens, low-rank products, factorizations, entropy coding.
#pragma once

#include <algorithm>

#include "core/kernels/entry.hpp"

namespace kvatlas::kernels {

/// Blends `rows` evicted rows into a neighbour each: two rows read, one written.
struct WeightedMerge {
  std::int64_t heads = 1;
  std::int64_t rows = 0;
  std::int64_t row_bytes = 0;
  int dim = 0;

  KernelCall call(double launches) const {
    Entry e(KernelId::weighted_merge, Stage::compress, rows > 0 ? launches : 0.0);
    e.read(heads * rows, 2 * row_bytes).write(heads * rows, row_bytes);
    e.vector(3.0 * static_cast<double>(heads * rows) * dim).work(heads * rows, heads);
    return e.call_;
  }
};

/// A dense linear map along the token axis: `from` rows to `to` rows for every channel.
struct Resample {
  std::int64_t heads = 1;
  std::int64_t from = 0;
  std::int64_t to = 0;
  int dim = 0;
  Dtype dtype = Dtype::bf16;

  KernelCall call(double launches) const {
    Entry e(KernelId::resample, Stage::compress, from > 0 && to > 0 ? launches : 0.0);
    e.read(heads, from * dim * bytes_of(dtype)).read(1, from * to * 4).write(heads, to * dim * bytes_of(dtype));
    e.tensor(2.0 * static_cast<double>(heads) * static_cast<double>(from) * static_cast<double>(to) * dim);
    e.work(heads * ceil_div(to, 64), heads);
    return e.call_;
  }
};

/// Rebuilds `rows` rows of `dim` values from `rank` coefficients each and a shared basis; `keep` writes them to memory.
struct LowRank {
  std::int64_t sequences = 1;
  std::int64_t rows = 0;
  int rank = 0;
  std::int64_t dim = 0;
  Dtype dtype = Dtype::bf16;
  bool keep = false;

  KernelCall call(double launches) const {
    Entry e(KernelId::low_rank, Stage::attention, rows > 0 ? launches : 0.0);
    e.read(sequences, rows * rank * bytes_of(dtype)).read(sequences, rank * dim * bytes_of(dtype));
    if (keep) e.write(sequences, rows * dim * bytes_of(dtype));
    e.tensor(2.0 * static_cast<double>(sequences * rows) * rank * static_cast<double>(dim));
    e.work(sequences * ceil_div(rows, 128), sequences);
    return e.call_;
  }
};

/// A truncated singular value decomposition of a `rows` x `cols` matrix by Gram matrix and eigen-decomposition.
struct Factorize {
  std::int64_t sequences = 1;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  int rank = 0;
  Dtype dtype = Dtype::bf16;

  KernelCall call(double launches) const {
    const double m = static_cast<double>(std::max(rows, cols)), n = static_cast<double>(std::min(rows, cols));
    Entry e(KernelId::factorize, Stage::compress, rows > 0 ? launches : 0.0);
    e.read(sequences, rows * cols * bytes_of(dtype), 2);
    e.write(sequences, (rows + cols) * rank * bytes_of(dtype));
    e.tensor(static_cast<double>(sequences) * (2.0 * m * n * n + 2.0 * m * n * rank));  // Gram matrix, projection
    e.vector(static_cast<double>(sequences) * 9.0 * n * n * n);                          // eigen-decomposition
    e.work(sequences, sequences);
    return e.call_;
  }
};

/// Entropy-codes or decodes `symbols` symbols in independent streams; `coded` bytes on one side, rows on the other.
struct EntropyCode {
  std::int64_t streams = 1;
  std::int64_t symbols = 0;
  Bytes coded{0};
  Bytes tables{0};
  Dtype dtype = Dtype::bf16;
  bool decode = true;

  KernelCall call(double launches) const {
    const std::int64_t plain = symbols * bytes_of(dtype);
    Entry e(KernelId::entropy_code, Stage::compress, symbols > 0 ? launches : 0.0);
    e.read(1, tables.value);
    if (decode) {
      e.read(streams, ceil_div(coded.value, streams)).write(1, plain);
    } else {
      e.read(1, plain).write(streams, ceil_div(coded.value, streams));
    }
    e.vector(60.0 * static_cast<double>(symbols)).work(streams, streams);  // one interval update and search a symbol
    return e.call_;
  }
};

}  // namespace kvatlas::kernels

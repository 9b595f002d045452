// Kernels that decide: scores from queries, attention mass, page bounds and labels, top-k, blocks of a prompt.
#pragma once

#include "core/kernels/entry.hpp"

namespace kvatlas::kernels {

/// Scores all cached keys by the last `observation_window` queries (softmax over all keys, reduced over the window).
struct WindowScore {
  std::int64_t sequences = 1;
  int kv_heads = 1;
  int q_per_kv = 1;
  int k_dim = 0;
  Dtype dtype = Dtype::bf16;
  Tokens context{0};
  Tokens observation_window{0};

  KernelCall call(double launches) const {
    const std::int64_t heads = sequences * kv_heads;
    const std::int64_t queries = observation_window.value * q_per_kv;
    Entry e(KernelId::window_score, Stage::select, launches);
    e.read(heads, context.value * k_dim * bytes_of(dtype), 2);  // one pass for maximum and sum, one for the weights
    e.read(heads * q_per_kv, observation_window.value * k_dim * bytes_of(dtype));
    e.write(heads, context.value * 4);
    const double pairs = static_cast<double>(heads * queries) * static_cast<double>(context.value);
    e.tensor(4.0 * pairs * k_dim).vector(8.0 * pairs).work(heads * ceil_div(context.value, 128), sequences);
    return e.call_;
  }
};

/// Adds the softmax weights of `queries` query rows per head to the 64-bit attention mass of every entry.
struct MassUpdate {
  std::int64_t sequences = 1;
  int kv_heads = 1;
  int q_per_kv = 1;
  Tokens tokens{0};
  std::int64_t state_bytes = 8;  // accumulated mass and counters of one entry

  KernelCall call(double launches) const {
    const std::int64_t heads = sequences * kv_heads;
    Entry e(KernelId::mass_update, Stage::select, launches);
    e.read(heads * q_per_kv, tokens.value * 4).read(heads, tokens.value * state_bytes).write(heads, tokens.value * state_bytes);
    e.vector(2.0 * static_cast<double>(heads * q_per_kv * tokens.value)).work(heads, sequences);
    return e.call_;
  }
};

/// Upper bounds of q.k for every page from the page's channel-wise minimum and maximum.
struct PageScore {
  std::int64_t sequences = 1;
  int kv_heads = 1;
  int q_per_kv = 1;
  int k_dim = 0;
  Dtype dtype = Dtype::bf16;
  std::int64_t pages = 0;

  KernelCall call(double launches) const {
    const std::int64_t heads = sequences * kv_heads;
    Entry e(KernelId::page_score, Stage::select, launches);
    e.read(heads, pages * 2 * k_dim * bytes_of(dtype)).read(heads * q_per_kv, std::int64_t{k_dim} * bytes_of(dtype));
    e.write(heads * q_per_kv, pages * 4);
    e.vector(4.0 * static_cast<double>(heads * q_per_kv * pages) * k_dim).work(heads * ceil_div(pages, 32), sequences);
    return e.call_;
  }
};

/// Scores every token from a narrow label row (`label_bits` bits a token and head).
struct LabelScore {
  std::int64_t sequences = 1;
  int heads = 1;              // heads that own labels
  int q_per_head = 1;
  int channels = 0;
  std::int64_t label_bits = 0;
  Tokens tokens{0};

  KernelCall call(double launches) const {
    const std::int64_t n = sequences * heads;
    Entry e(KernelId::label_score, Stage::select, launches);
    e.read(n, to_bytes_ceil(Bits(tokens.value * label_bits)).value).read(n * q_per_head, std::int64_t{channels} * 4);
    e.write(n * q_per_head, tokens.value * 4);
    e.vector(3.0 * static_cast<double>(n * q_per_head * tokens.value) * channels);
    e.work(n * ceil_div(tokens.value, 256), sequences);
    return e.call_;
  }
};

/// Keeps the `k` best of `candidates` scores in each row; writes ascending indices.
struct TopK {
  std::int64_t rows = 1;
  std::int64_t candidates = 0;
  std::int64_t k = 0;

  KernelCall call(double launches) const {
    Entry e(KernelId::top_k, Stage::select, candidates > 0 ? launches : 0.0);
    e.read(rows, candidates * 4, 4).write(rows, k * 4);  // four digits of a radix select
    e.vector(8.0 * static_cast<double>(rows * candidates)).work(rows, rows);
    return e.call_;
  }
};

/// Estimates the softmax mass of every block of a prompt from strided antidiagonals and picks blocks (XAttention).
struct BlockSelect {
  std::int64_t sequences = 1;
  int q_heads = 1;
  int kv_heads = 1;
  int dim = 0;
  Dtype dtype = Dtype::bf16;
  Tokens context{0};
  int stride = 16;
  int block = 128;

  KernelCall call(double launches) const {
    const double n = static_cast<double>(context.value);
    const double rows = n / stride;
    const std::int64_t blocks = ceil_div(context.value, block);
    Entry e(KernelId::block_select, Stage::select, launches);
    e.read(sequences * (q_heads + kv_heads), context.value * dim * bytes_of(dtype));
    e.write(sequences * q_heads, blocks * blocks);
    e.tensor(static_cast<double>(sequences * q_heads) * rows * rows / 2 * 2.0 * stride * dim);
    e.vector(static_cast<double>(sequences * q_heads) * rows * rows / 2 * 5.0);
    e.work(sequences * q_heads * blocks, sequences);
    return e.call_;
  }
};

}  // namespace kvatlas::kernels

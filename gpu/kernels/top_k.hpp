// top_k: the k tokens of a row with the highest scores, of equal scores the lower token first, then the protected window, all in
// ascending order. A block serves a row: a radix select finds the lowest key that stays (digits of 11, 11 and 10 bits, histograms in
// shared memory), a fourth pass writes what lies above it. Integers alone decide, so no order of threads can matter.
#pragma once

#include "core/arith.hpp"
#include "gpu/simt/site.hpp"

namespace kvatlas::gpu {

inline constexpr int kTopKBins = 2048;

struct TopKShape {
  int threads;  // 128, 256 or 512
  KV_FN constexpr int chunk() const { return threads * 4; }  // scores of one round of the block
  KV_FN constexpr int bins_of_thread() const { return kTopKBins / threads; }
  constexpr std::int64_t shared_bytes() const { return kTopKBins * 4 + std::int64_t{chunk()} * 4 + threads / 32 * 4 + 16; }
};

template <class C>
struct TopKArgs {
  template <class T>
  using Global = typename C::template Global<T>;
  Global<const float> scores;   // [rows][stride], no NaN
  Global<std::int32_t> chosen;  // [rows][k + window]
  std::int64_t candidates = 0;  // scored tokens of a row
  std::int64_t stride = 0;      // a multiple of 4
  std::int64_t k = 0;           // at most candidates
  std::int64_t window = 0;      // tokens from `candidates` on that stay in any case
};

namespace topk {

/// What stays: every key above `key`, and the first `equal` keys that equal it.
struct Threshold {
  std::uint32_t key = 0, equal = 0;
};

template <class C>
struct Block {
  typename C::template Shared<std::uint32_t> bins, totals;
  typename C::template Shared<std::int32_t> staged;
  typename C::template Shared<Vec<std::uint32_t, 2>> decision;
};

/// Ordered keys of scores [first, first + 4) that exist; answers how many. Traps on NaN, which has no place in the order.
template <class C>
KV_KERNEL inline int load_keys(C& c, const TopKArgs<C>& a, std::int64_t row, std::int64_t first, std::uint32_t (&key)[4]) {
  const std::int64_t rest = a.candidates - first;
  const int count = rest >= 4 ? 4 : rest > 0 ? static_cast<int>(rest) : 0;
  float x[4] = {};
  if (count == 4) {
    const Vec<float, 4> four = c.ld_nc(C::template global_as<const Vec<float, 4>>(a.scores), (row * a.stride + first) / 4);
    KV_UNROLL
    for (int j = 0; j < 4; ++j) x[j] = four.v[j];
  } else {
    KV_UNROLL
    for (int j = 0; j < 3; ++j)
      if (j < count) x[j] = c.ld_nc(a.scores, row * a.stride + first + j);
  }
  c.sync_warp();
  KV_UNROLL
  for (int j = 0; j < 4; ++j) {
    if (num::is_nan(x[j])) c.trap();
    key[j] = static_cast<std::uint32_t>(num::selection_key(x[j], 0) >> 32);
  }
  return count;
}

/// Sum over the lanes up to this one.
template <class C>
KV_KERNEL inline std::uint32_t warp_scan(C& c, std::uint32_t value) {
  KV_UNROLL
  for (int d = 1; d < 32; d *= 2) {
    const std::uint32_t there = c.shfl_up(kFullMask, value, d);
    if (c.lane() >= d) value += there;
  }
  return value;
}

/// Sum over all threads before this one; `all` becomes the sum over the block. One barrier.
template <class C>
KV_KERNEL inline std::uint32_t block_scan(C& c, const Block<C>& s, std::uint32_t value, std::uint32_t& all) {
  const std::uint32_t inclusive = warp_scan(c, value);
  if (c.lane() == 31) c.st_shared(s.totals, c.warp(), inclusive);
  c.sync_block();
  std::uint32_t before = inclusive - value;
  all = 0;
  for (int w = 0; w < c.warps(); ++w) {
    const std::uint32_t total = c.ld_shared(s.totals, w);
    if (w < c.warp()) before += total;
    all += total;
  }
  return before;
}

/// Bins of high digits come first, and a thread's bins lie a block apart: reading them meets no bank twice.
template <TopKShape S>
KV_KERNEL inline int bin_of(std::uint32_t digit) {
  const int rank = kTopKBins - 1 - static_cast<int>(digit);
  return rank % S.bins_of_thread() * S.threads + rank / S.bins_of_thread();
}

template <TopKShape S, class C>
KV_KERNEL inline Threshold find_threshold(C& c, const TopKArgs<C>& a, const Block<C>& s, std::int64_t row) {
  constexpr int kOwn = S.bins_of_thread();
  Threshold t{0, static_cast<std::uint32_t>(a.k)};
  KV_UNROLL
  for (int digit = 0; digit < 3; ++digit) {
    const int shift = digit == 0 ? 21 : digit == 1 ? 10 : 0, bits = digit == 2 ? 10 : 11;
    for (int i = c.thread(); i < kTopKBins; i += S.threads) c.st_shared(s.bins, i, 0U);
    c.sync_block();
    for (std::int64_t first = 0; first < a.candidates; first += S.chunk()) {
      std::uint32_t key[4];
      const int count = load_keys(c, a, row, first + c.thread() * 4, key);
      KV_UNROLL
      for (int j = 0; j < 4; ++j) {
        if (j < count && (digit == 0 || key[j] >> (shift + bits) == t.key)) c.atomic_add(s.bins, bin_of<S>((key[j] >> shift) & ((1U << bits) - 1U)), 1U);
        c.sync_warp();
      }
    }
    c.sync_block();
    std::uint32_t own[kOwn], sum = 0, all = 0;
    KV_UNROLL
    for (int b = 0; b < kOwn; ++b) {
      own[b] = c.ld_shared(s.bins, b * S.threads + c.thread());
      sum += own[b];
    }
    std::uint32_t before = block_scan(c, s, sum, all);
    if (before < t.equal && t.equal <= before + sum) {
      Vec<std::uint32_t, 2> found{};
      KV_UNROLL
      for (int b = 0; b < kOwn; ++b) {
        if (before < t.equal && t.equal <= before + own[b]) found = {{static_cast<std::uint32_t>(kTopKBins - 1 - (c.thread() * kOwn + b)), t.equal - before}};
        before += own[b];
      }
      c.st_shared(s.decision, 0, found);
    }
    c.sync_block();
    const Vec<std::uint32_t, 2> found = c.ld_shared(s.decision);
    t = {t.key << bits | found.v[0], found.v[1]};
  }
  return t;
}

/// Writes the kept tokens of a row, staged in shared memory so that neighbours leave together.
template <TopKShape S, class C>
KV_KERNEL inline void write_kept(C& c, const TopKArgs<C>& a, const Block<C>& s, std::int64_t row, const Threshold& t) {
  const auto least = [](std::uint32_t x, std::uint32_t y) { return x < y ? x : y; };
  std::int64_t to = row * (a.k + a.window);
  std::uint32_t equals = 0;  // keys that equal the threshold in the rounds before
  for (std::int64_t first = 0; first < a.candidates; first += S.chunk()) {
    std::uint32_t key[4], counts = 0, all = 0;  // above the threshold in the lower half, equal to it in the upper one
    const int count = load_keys(c, a, row, first + c.thread() * 4, key);
    KV_UNROLL
    for (int j = 0; j < 4; ++j)
      if (j < count) counts += key[j] > t.key ? 1U : key[j] == t.key ? 1U << 16 : 0U;
    const std::uint32_t before = block_scan(c, s, counts, all);
    const std::uint32_t taken = least(equals, t.equal);
    std::uint32_t equal = equals + (before >> 16);
    std::uint32_t place = (before & 0xFFFFU) + least(equal, t.equal) - taken;
    KV_UNROLL
    for (int j = 0; j < 4; ++j) {
      const bool same = j < count && key[j] == t.key;
      if ((j < count && key[j] > t.key) || (same && equal < t.equal)) {
        c.st_shared(s.staged, place, static_cast<std::int32_t>(first + c.thread() * 4 + j));
        place += 1;
      }
      equal += same ? 1U : 0U;
      c.sync_warp();
    }
    equals += all >> 16;
    const std::int64_t kept = std::int64_t{all & 0xFFFFU} + least(equals, t.equal) - taken;
    c.sync_block();
    for (std::int64_t i = c.thread(); i < kept; i += S.threads) c.st(a.chosen, to + i, c.ld_shared(s.staged, i));
    c.sync_warp();
    to += kept;
  }
}

}  // namespace topk

/// grid (rows), S.threads threads. Traps on NaN.
template <TopKShape S, class C>
KV_KERNEL void top_k(C& c, const TopKArgs<C>& a) {
  topk::Block<C> s;
  s.bins = c.template shared<std::uint32_t>(kTopKBins);
  s.staged = c.template shared<std::int32_t>(S.chunk());
  s.totals = c.template shared<std::uint32_t>(S.threads / 32);
  s.decision = c.template shared<Vec<std::uint32_t, 2>>(1);
  const std::int64_t row = c.block_x();
  if (a.k > 0) topk::write_kept<S>(c, a, s, row, topk::find_threshold<S>(c, a, s, row));
  for (std::int64_t i = c.thread(); i < a.window; i += S.threads) c.st(a.chosen, row * (a.k + a.window) + a.k + i, static_cast<std::int32_t>(a.candidates + i));
}

}  // namespace kvatlas::gpu

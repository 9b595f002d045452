// integer_decode: decode attention in exact integers, for uniform integer codes. Arguments, grid, spans and partial results are those
// of decode_attention; all arithmetic is in the order of reference/primitives/integer_attention.hpp, and products of codes go through
// integer tensor cores, where no order can change a bit:
//   q.k   a warp has 16 tokens; codes are the matrix of rows, limbs of query codes its columns (2 for each query head)
//   p.v   a warp has 32 channels; codes, turned by byte permutes, are rows of channels, limbs of weight codes the columns
// A lane keeps the numerators of 4 channels for one query head in four.
#pragma once

#include "gpu/kernels/integer_parts.hpp"

namespace kvatlas::gpu {

/// grid (max_spans, kv_heads, sequences), S.threads() threads, S.shared_bytes() bytes of shared memory. Every context is at least 1.
template <IntegerShape S, class C>
KV_KERNEL void integer_decode(C& c, const DecodeArgs<C>& a) {
  static_assert(S.supported());
  constexpr int G = S.base.q_per_kv, kDim = S.base.dim, kTile = S.tile, kWarps = S.threads() / 32;
  const std::int64_t sequence = c.block_z(), head = c.block_y(), span = c.block_x();
  const DecodeSequence control = c.ld_nc(a.sequences, sequence);
  const std::int64_t context = control.context;
  // span_length and span_count of core/span_rule.hpp
  std::int64_t length = ((context + 15) / 16 + kTileTokens - 1) / kTileTokens * kTileTokens;
  length = length < 256 ? 256 : length > 4096 ? 4096 : length;
  const std::int64_t begin = span * length;
  if (begin >= context) return;
  const std::int64_t end = begin + length < context ? begin + length : context;
  const bool only_span = length >= context;

  const auto stages = c.template shared<std::uint8_t>(S.base.stages * S.stage_bytes());
  const auto q = c.template shared<float>(G * kDim);                // at the end: the block's accumulators
  const auto query = c.template shared<std::uint8_t>(S.query_bytes());
  const auto query_steps = c.template shared<float>(S.key_groups() * G);
  const auto query_zeros = c.template shared<float>(S.key_groups() * G);
  const auto weights = c.template shared<float>(G * S.weight_pitch());  // logits, then u
  const auto codes = c.template shared<std::uint8_t>(S.weight_bytes());
  const auto steps = c.template shared<float>(S.value_groups() * G);
  const auto zeros = c.template shared<float>(S.value_groups() * G);
  const auto totals = c.template shared<float>(G);                  // U; at the end: the span's sum
  const auto rescale = c.template shared<float>(G);                 // of what was before
  const auto weigh = c.template shared<float>(G);                   // of the tile
  const auto maxima = c.template shared<float>(G);
  decode::StagedSide<C> k, v;
  const auto place = [&](int which) {
    k.rows = stages + which * S.stage_bytes();
    k.scales = k.rows + S.rows_bytes(S.key_pitch());
    k.zeros = k.scales + S.metas(S.base.k, S.base.k.scale_bytes);
    v.rows = k.rows + S.side_bytes(S.base.k, S.key_pitch());
    v.scales = v.rows + S.rows_bytes(S.value_pitch());
    v.zeros = v.scales + S.metas(S.base.v, S.base.v.scale_bytes);
  };
  const auto tokens_of = [&](std::int64_t tile) { return end - tile < kTile ? end - tile : std::int64_t{kTile}; };
  const auto fetch_tile = [&](std::int64_t tile) { integer::fetch_tile<S>(c, a, control, k, v, sequence, head, tile, tokens_of(tile)); };
  place(0);
  fetch_tile(begin);

  const std::int64_t row = (sequence * a.kv_heads + head) * G;
  for (int i = c.thread(); i < G * kDim / 8; i += S.threads()) {
    const Vec<std::uint16_t, 8> bits = c.ld_nc(C::template global_as<const Vec<std::uint16_t, 8>>(a.q + row * kDim), i);
    KV_UNROLL
    for (int half = 0; half < 2; ++half) {
      Vec<float, 4> four;
      KV_UNROLL
      for (int j = 0; j < 4; ++j) four.v[j] = load16<C, S.base.dtype>(bits.v[half * 4 + j]);
      c.st_shared(C::template shared_as<Vec<float, 4>>(q), i * 2 + half, four);
    }
  }
  if constexpr (!S.base.k.along_tokens()) {
    c.sync_block();
    for (int g = c.warp(); g < G; g += kWarps) integer::code_query<S>(c, q, k, query, query_steps, query_zeros, 0, g);
  }

  constexpr int kHeadsOfWarp = (G + kWarps - 1) / kWarps;
  const int lane4 = c.lane() % 4, channel = c.warp() * 32 + c.lane() / 4 * 4;  // of p.v: heads lane4, lane4 + 4, ...; 4 channels
  float maximum[kHeadsOfWarp];
  KV_UNROLL
  for (int i = 0; i < kHeadsOfWarp; ++i) maximum[i] = -num::infinity();
  float acc[S.products()][4] = {}, sum[S.products()] = {};

  int current = 0;
  for (std::int64_t tile = begin; tile < end; tile += kTile) {
    const int tokens = static_cast<int>(tokens_of(tile));
    if constexpr (S.base.stages == 2) {
      if (tile + kTile < end) {
        place(1 - current);
        fetch_tile(tile + kTile);
        c.template async_wait<1>();
      } else {
        c.template async_wait<0>();
      }
    } else {
      c.template async_wait<0>();
    }
    place(current);
    const auto coded_of = [&](std::int64_t coded) { return static_cast<int>(coded <= tile ? 0 : coded - tile < tokens ? coded - tile : tokens); };
    k.coded = coded_of(control.k_coded);
    v.coded = coded_of(control.v_coded);
    c.sync_block();

    if constexpr (S.base.k.along_tokens()) {
      for (int task = c.warp(); task < k.coded / S.base.k.group_size * G; task += kWarps)
        integer::code_query<S>(c, q, k, query, query_steps, query_zeros, task / G, task % G);
      c.sync_block();
    }
    for (int first = c.warp() * 16; first < k.coded; first += kWarps * 16) integer::coded_logits<S>(c, k, query, query_steps, query_zeros, weights, first, a.scale);
    if constexpr (S.base.residual) integer::plain_logits<S>(c, k, q, weights, tokens, a.scale);
    c.sync_block();

    KV_UNROLL
    for (int i = 0; i < kHeadsOfWarp; ++i) {
      const int g = c.warp() + i * kWarps;
      if (g < G) {
        float x[kTile / 32], best = -num::infinity(), total = 0.0F;
        KV_UNROLL
        for (int j = 0; j < kTile / 32; ++j) {
          const int token = c.lane() + 32 * j;
          const float found = c.ld_shared(weights, g * S.weight_pitch() + (token < tokens ? token : tokens - 1));
          x[j] = token < tokens ? found : -num::infinity();
          best = num::max(best, x[j]);
        }
        KV_UNROLL
        for (int d = 16; d > 0; d /= 2) best = num::max(best, c.shfl_xor(kFullMask, best, d));
        best = best == 0.0F ? 0.0F : best;
        c.sync_warp();  // lanes behind the last token read it, too
        KV_UNROLL
        for (int j = 0; j < kTile / 32; ++j) {
          const float u = num::weight_of(num::exp2(x[j] - best));
          c.st_shared(weights, g * S.weight_pitch() + c.lane() + 32 * j, u);
          total = total + u;  // whole numbers below 2^24: exact in any order
        }
        KV_UNROLL
        for (int d = 16; d > 0; d /= 2) total = total + c.shfl_xor(kFullMask, total, d);
        const float m = num::max(maximum[i], best);
        if (c.lane() == 0) {
          c.st_shared(totals, g, total);
          c.st_shared(rescale, g, num::exp2(maximum[i] - m));
          c.st_shared(weigh, g, num::exp2(best - m));
          c.st_shared(maxima, g, m);
        }
        maximum[i] = m;
      }
    }
    c.sync_block();

    std::int32_t products[S.products()][2][4] = {};
    if (v.coded > 0) {
      integer::code_weights<S>(c, v, weights, codes, steps, zeros);
      c.sync_block();
      if (v.coded == kTile) integer::coded_products<S, true>(c, v, codes, products);
      else integer::coded_products<S, false>(c, v, codes, products);
    }
    KV_UNROLL
    for (int n = 0; n < S.products(); ++n) {
      const int g = n * 4 + lane4;
      if (g < G) {
        float add[4] = {};
        if (v.coded > 0) {
          const int group = g * S.value_groups() + channel / S.base.v.group_size;
          const float step = c.ld_shared(steps, group), zero = c.ld_shared(zeros, group);
          KV_UNROLL
          for (int j = 0; j < 4; ++j)
            add[j] = num::fma(static_cast<float>(products[n][j / 2][j % 2 * 2 + 1] * 256 + products[n][j / 2][j % 2 * 2]), step, zero);
        }
        if constexpr (S.base.residual) {
          float plain[4] = {};
          for (int token = v.coded; token < tokens; ++token) {
            const float u = c.ld_shared(weights, g * S.weight_pitch() + token);
            const Vec<std::uint16_t, 4> four = c.ld_shared(C::template shared_as<Vec<std::uint16_t, 4>>(v.rows), (token * kDim + channel) / 4);
            KV_UNROLL
            for (int j = 0; j < 4; ++j) plain[j] = num::fma(u, load16<C, S.base.dtype>(four.v[j]), plain[j]);
          }
          KV_UNROLL
          for (int j = 0; j < 4; ++j) add[j] = add[j] + plain[j];
        }
        const float before = c.ld_shared(rescale, g), now = c.ld_shared(weigh, g);
        sum[n] = num::fma(c.ld_shared(totals, g), now, sum[n] * before);
        KV_UNROLL
        for (int j = 0; j < 4; ++j) acc[n][j] = num::fma(add[j], now, acc[n][j] * before);
      }
      c.sync_warp();
    }
    c.sync_block();  // the tile and its weights are used up
    if constexpr (S.base.stages == 2) {
      current = 1 - current;
    } else {
      if (tile + kTile < end) fetch_tile(tile + kTile);
    }
  }

  KV_UNROLL
  for (int n = 0; n < S.products(); ++n) {
    const int g = n * 4 + lane4;
    if (g < G) {
      c.st_shared(C::template shared_as<Vec<float, 4>>(q), (g * kDim + channel) / 4, Vec<float, 4>{acc[n][0], acc[n][1], acc[n][2], acc[n][3]});
      if (c.thread() < 4) c.st_shared(totals, g, sum[n]);
    }
    c.sync_warp();
  }
  c.sync_block();
  for (int g = 0; g < G; ++g) {
    const float x = c.ld_shared(q, g * kDim + c.thread()), s = c.ld_shared(totals, g);
    if (only_span) {
      c.st(a.out, (row + g) * kDim + c.thread(), store16<C, S.base.dtype>(s == 0.0F ? 0.0F : x / s));
    } else {
      c.st(a.partial, ((row + g) * a.max_spans + span) * kDim + c.thread(), x);
      if (c.thread() == 0) c.st(a.state, (row + g) * a.max_spans + span, Vec<float, 2>{c.ld_shared(maxima, g), s});
    }
    c.sync_warp();
  }
}

}  // namespace kvatlas::gpu

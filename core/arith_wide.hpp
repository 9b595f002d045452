// AVX2 forms of the canonical sums: the same operations in the same order as the definitions in core/arith_sums.hpp, many
// lanes or many keys at a time. Included by core/arith_sums.hpp where the compiler has AVX2 and FMA.
#pragma once

#if defined(__AVX2__) && defined(__FMA__) && !defined(__CUDACC__)
#define KV_WIDE_SUMS 1

#include <immintrin.h>

#include <cstdint>

#include "core/float_ops.hpp"

namespace kvatlas::num::wide {

/// The butterflies of 8 lanes at distance 4, 2, 1.
inline float butterfly(__m256 eight) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
/// The butterflies of 32 lanes, four vectors of eight: distances 16 and 8 between vectors, the others inside the last one.
inline float butterfly(__m256 a, __m256 b, __m256 c, __m256 d) {
  return butterfly(_mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d)));
}

/// The `count` < 8 floats at x, zeros behind them; reads nothing else.
inline __m256 load_some(const float* x, int count) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(x, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), index));
}
/// `fresh` in the first `count` lanes, `kept` in the others: a lane without an element must not even add a zero.
inline __m256 blend_some(__m256 kept, __m256 fresh, int count) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_blendv_ps(kept, fresh, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), index)));
}

inline float lane_sum(const float* x, std::int64_t n) {
  __m256 lane[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  std::int64_t i = 0;
  for (; i + 32 <= n; i += 32)
    for (int v = 0; v < 4; ++v) lane[v] = _mm256_add_ps(lane[v], _mm256_loadu_ps(x + i + 8 * v));
  for (int v = 0; i < n; ++v, i += 8) {
    const int count = n - i < 8 ? static_cast<int>(n - i) : 8;
    lane[v] = blend_some(lane[v], _mm256_add_ps(lane[v], load_some(x + i, count)), count);
  }
  return butterfly(lane[0], lane[1], lane[2], lane[3]);
}

inline float lane_dot(const float* a, const float* b, std::int64_t n) {
  __m256 lane[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  std::int64_t i = 0;
  for (; i + 32 <= n; i += 32)
    for (int v = 0; v < 4; ++v)
      lane[v] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * v), _mm256_loadu_ps(b + i + 8 * v), lane[v]);
  for (int v = 0; i < n; ++v, i += 8) {
    const int count = n - i < 8 ? static_cast<int>(n - i) : 8;
    lane[v] = blend_some(lane[v], _mm256_fmadd_ps(load_some(a + i, count), load_some(b + i, count), lane[v]), count);
  }
  return butterfly(lane[0], lane[1], lane[2], lane[3]);
}

/// Four neighbouring channels of eight keys, transposed: column[c] holds channel c of keys 0..7.
inline void transpose_4x8(const float* const* key, std::int64_t channel, __m256* column) {
  __m256 row[4];
  for (int r = 0; r < 4; ++r)
    row[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(key[r] + channel)), _mm_loadu_ps(key[r + 4] + channel), 1);
  const __m256 low01 = _mm256_unpacklo_ps(row[0], row[1]);
  const __m256 high01 = _mm256_unpackhi_ps(row[0], row[1]);
  const __m256 low23 = _mm256_unpacklo_ps(row[2], row[3]);
  const __m256 high23 = _mm256_unpackhi_ps(row[2], row[3]);
  column[0] = _mm256_shuffle_ps(low01, low23, 0x44);
  column[1] = _mm256_shuffle_ps(low01, low23, 0xEE);
  column[2] = _mm256_shuffle_ps(high01, high23, 0x44);
  column[3] = _mm256_shuffle_ps(high01, high23, 0xEE);
}

/// One key: the eight runs of eight channels in 64 take the place of the eight keys above, so a vector holds all lanes.
inline float qk_dot(const float* q, const float* k, int n) {
  __m256 sum = _mm256_setzero_ps();
  int first = 0;
  for (; first + 64 <= n; first += 64) {
    const float* query[8];
    const float* key[8];
    for (int l = 0; l < 8; ++l) {
      query[l] = q + first + 8 * l;
      key[l] = k + first + 8 * l;
    }
    for (int channel = 0; channel < 8; channel += 4) {
      __m256 a[4];
      __m256 b[4];
      transpose_4x8(query, channel, a);
      transpose_4x8(key, channel, b);
      for (int c = 0; c < 4; ++c) sum = _mm256_fmadd_ps(a[c], b[c], sum);
    }
  }
  if (const int rest = n % 64; rest > 0) {
    float lane[8];
    _mm256_storeu_ps(lane, sum);
    for (int i = 0; i < rest; ++i) lane[i / 8] = num::fma(q[first + i], k[first + i], lane[i / 8]);
    sum = _mm256_loadu_ps(lane);
  }
  return butterfly(sum);
}

/// qk_dot of q with 8 * Groups keys: a vector holds one lane of the order for eight keys, so butterflies are plain adds.
template <int Groups>
inline void qk_dot_keys(const float* q, const float* const* key, int n, __m256* out) {
  const int blocks = n / 8;
  const int rest = n % 8;
  __m256 lane[8][Groups];
  for (int l = 0; l < 8; ++l) {
    __m256 sum[Groups];
    for (int g = 0; g < Groups; ++g) sum[g] = _mm256_setzero_ps();
    for (int block = l; block < blocks; block += 8)
      for (int half = 0; half < 2; ++half) {
        const int channel = 8 * block + 4 * half;
        __m256 column[Groups][4];
        for (int g = 0; g < Groups; ++g) transpose_4x8(key + 8 * g, channel, column[g]);
        for (int c = 0; c < 4; ++c) {
          const __m256 query = _mm256_broadcast_ss(q + channel + c);
          for (int g = 0; g < Groups; ++g) sum[g] = _mm256_fmadd_ps(query, column[g][c], sum[g]);
        }
      }
    if (rest != 0 && blocks % 8 == l)
      for (int channel = 8 * blocks; channel < n; ++channel)
        for (int g = 0; g < Groups; ++g) {
          const float* const* k = key + 8 * g;
          const __m256 column = _mm256_setr_ps(k[0][channel], k[1][channel], k[2][channel], k[3][channel], k[4][channel],
                                               k[5][channel], k[6][channel], k[7][channel]);
          sum[g] = _mm256_fmadd_ps(_mm256_broadcast_ss(q + channel), column, sum[g]);
        }
    for (int g = 0; g < Groups; ++g) lane[l][g] = sum[g];
  }
  for (int g = 0; g < Groups; ++g) {
    for (int distance = 4; distance > 0; distance /= 2)
      for (int l = 0; l < distance; ++l) lane[l][g] = _mm256_add_ps(lane[l][g], lane[l + distance][g]);
    out[g] = lane[0][g];
  }
}

inline void qk_dot_rows(const float* q, const float* k_rows, std::int64_t stride, std::int64_t rows, int n, float* out) {
  std::int64_t r = 0;
  const float* key[16];
  __m256 score[2];
  for (; r + 16 <= rows; r += 16) {
    for (int j = 0; j < 16; ++j) key[j] = k_rows + (r + j) * stride;
    qk_dot_keys<2>(q, key, n, score);
    _mm256_storeu_ps(out + r, score[0]);
    _mm256_storeu_ps(out + r + 8, score[1]);
  }
  for (; r < rows; r += 8) {  // a short group repeats its last key and stores what it has
    const int count = rows - r < 8 ? static_cast<int>(rows - r) : 8;
    for (int j = 0; j < 8; ++j) key[j] = k_rows + (r + (j < count ? j : count - 1)) * stride;
    qk_dot_keys<1>(q, key, n, score);
    float part[8];
    _mm256_storeu_ps(part, score[0]);
    for (int j = 0; j < count; ++j) out[r + j] = part[j];
  }
}

}  // namespace kvatlas::num::wide

#endif

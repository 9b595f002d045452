// The inner loops of PackedMatrix for three instruction sets; the scalar one is the definition, the others repeat its bits.
#include "models/runtime/micro_kernels.hpp"

#include "core/arith.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#define KV_X86_KERNELS 1
#endif

namespace kvatlas::models {

namespace {

constexpr int kWidth = 16;

/// The definition: one accumulator an output, inputs in increasing order, fused.
void run_scalar(int tokens, int panels, const Tile& t) {
  for (int p = 0; p < panels; ++p)
    for (int m = 0; m < tokens; ++m) {
      float sum[kWidth] = {};
      const float* panel = t.panel + p * t.panel_stride;
      for (std::int64_t k = 0; k < t.in; ++k)
        for (int o = 0; o < kWidth; ++o) sum[o] = num::fma(t.x[k * tokens + m], panel[k * kWidth + o], sum[o]);
      for (int o = 0; o < kWidth; ++o) t.out[m * t.out_stride + p * kWidth + o] = sum[o];
    }
}

#if defined(KV_X86_KERNELS)
// Six tokens by 16 outputs fill twelve of AVX2's sixteen registers; one token by four panels hides the latency of a sum.
template <int Tokens, int Panels>
__attribute__((target("avx2,fma"))) void tile_avx2(const Tile& t) {
  __m256 sum[Tokens][2 * Panels];
  for (int m = 0; m < Tokens; ++m)
    for (int p = 0; p < 2 * Panels; ++p) sum[m][p] = _mm256_setzero_ps();
  const float* x = t.x;
  const float* w = t.panel;
  for (std::int64_t k = 0; k < t.in; ++k) {
    __m256 row[2 * Panels];
    for (int p = 0; p < Panels; ++p) {
      row[2 * p] = _mm256_load_ps(w + p * t.panel_stride);
      row[2 * p + 1] = _mm256_load_ps(w + p * t.panel_stride + 8);
    }
    for (int m = 0; m < Tokens; ++m) {
      const __m256 value = _mm256_broadcast_ss(x + m);
      for (int p = 0; p < 2 * Panels; ++p) sum[m][p] = _mm256_fmadd_ps(value, row[p], sum[m][p]);
    }
    x += Tokens;
    w += kWidth;
  }
  for (int m = 0; m < Tokens; ++m)
    for (int p = 0; p < 2 * Panels; ++p) _mm256_storeu_ps(t.out + m * t.out_stride + 8 * p, sum[m][p]);
}

template <int Tokens, int Panels>
__attribute__((target("avx512f"))) void tile_avx512(const Tile& t) {
  __m512 sum[Tokens][Panels];
  for (int m = 0; m < Tokens; ++m)
    for (int p = 0; p < Panels; ++p) sum[m][p] = _mm512_setzero_ps();
  const float* x = t.x;
  const float* w = t.panel;
  for (std::int64_t k = 0; k < t.in; ++k) {
    __m512 row[Panels];
    for (int p = 0; p < Panels; ++p) row[p] = _mm512_load_ps(w + p * t.panel_stride);
    for (int m = 0; m < Tokens; ++m) {
      const __m512 value = _mm512_set1_ps(x[m]);
      for (int p = 0; p < Panels; ++p) sum[m][p] = _mm512_fmadd_ps(value, row[p], sum[m][p]);
    }
    x += Tokens;
    w += kWidth;
  }
  for (int m = 0; m < Tokens; ++m)
    for (int p = 0; p < Panels; ++p) _mm512_storeu_ps(t.out + m * t.out_stride + kWidth * p, sum[m][p]);
}

void run_avx2(int tokens, int panels, const Tile& t) {
  if (tokens == 1 && panels == 4) return tile_avx2<1, 4>(t);
  for (int p = 0; p < panels; ++p) {
    Tile one = t;
    one.panel += p * t.panel_stride;
    one.out += p * kWidth;
    switch (tokens) {
      case 1: tile_avx2<1, 1>(one); break;
      case 2: tile_avx2<2, 1>(one); break;
      case 3: tile_avx2<3, 1>(one); break;
      case 4: tile_avx2<4, 1>(one); break;
      case 5: tile_avx2<5, 1>(one); break;
      default: tile_avx2<6, 1>(one); break;
    }
  }
}

template <int Panels>
void run_avx512_panels(int tokens, const Tile& t) {
  switch (tokens) {
    case 1: return tile_avx512<1, Panels>(t);
    case 2: return tile_avx512<2, Panels>(t);
    case 3: return tile_avx512<3, Panels>(t);
    case 4: return tile_avx512<4, Panels>(t);
    case 5: return tile_avx512<5, Panels>(t);
    case 6: return tile_avx512<6, Panels>(t);
    case 7: return tile_avx512<7, Panels>(t);
    case 8: return tile_avx512<8, Panels>(t);
    case 9: return tile_avx512<9, Panels>(t);
    case 10: return tile_avx512<10, Panels>(t);
    case 11: return tile_avx512<11, Panels>(t);
    default: return tile_avx512<12, Panels>(t);
  }
}

void run_avx512(int tokens, int panels, const Tile& t) {
  if (tokens == 1 && panels == 8) return tile_avx512<1, 8>(t);
  for (int p = 0; p < panels; p += 2) {
    Tile part = t;
    part.panel += p * t.panel_stride;
    part.out += p * kWidth;
    if (panels - p >= 2)
      run_avx512_panels<2>(tokens, part);
    else
      run_avx512_panels<1>(tokens, part);
  }
}
#endif

}  // namespace

extern constinit const MicroKernels kScalarKernels{.max_tokens = 4, .panels = 1, .single_panels = 1, .run = run_scalar};
#if defined(KV_X86_KERNELS)
extern constinit const MicroKernels kAvx2Kernels{.max_tokens = 6, .panels = 1, .single_panels = 4, .run = run_avx2};
extern constinit const MicroKernels kAvx512Kernels{.max_tokens = 12, .panels = 2, .single_panels = 8, .run = run_avx512};
#else
extern constinit const MicroKernels kAvx2Kernels{.max_tokens = 0, .panels = 0, .single_panels = 0, .run = nullptr};
extern constinit const MicroKernels kAvx512Kernels{.max_tokens = 0, .panels = 0, .single_panels = 0, .run = nullptr};
#endif

}  // namespace kvatlas::models

#include "models/runtime/packed_matrix.hpp"

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "core/errors.hpp"
#include "core/parallel.hpp"
#include "core/units.hpp"
#include "models/runtime/micro_kernels.hpp"

namespace kvatlas::models {

namespace {

constexpr std::align_val_t kLine{64};

bool processor_has(ProductKernel kernel) {
#if defined(__x86_64__)
  if (kernel == ProductKernel::avx512) return __builtin_cpu_supports("avx512f") != 0;
  if (kernel == ProductKernel::avx2) return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
#endif
  return kernel == ProductKernel::scalar;
}

const MicroKernels& kernels(ProductKernel kernel) {
  static const ProductKernel widest = available(ProductKernel::avx512) ? ProductKernel::avx512
                                      : available(ProductKernel::avx2) ? ProductKernel::avx2
                                                                       : ProductKernel::scalar;
  if (kernel == ProductKernel::automatic) kernel = widest;
  KV_ASSERT(available(kernel), "a micro-kernel that the processor can run");
  return kernel == ProductKernel::avx512 ? kAvx512Kernels : kernel == ProductKernel::avx2 ? kAvx2Kernels : kScalarKernels;
}

/// Tokens [first, first + count) as [in][count].
void pack_tokens(View<const float> x, std::int64_t first, std::int64_t count, float* to) {
  for (std::int64_t m = 0; m < count; ++m) {
    const float* row = x.data() + (first + m) * x.stride(0);
    for (std::int64_t k = 0; k < x.dim(1); ++k) to[k * count + m] = row[k];
  }
}

}  // namespace

bool available(ProductKernel kernel) {
  switch (kernel) {
    case ProductKernel::avx2: return kAvx2Kernels.run != nullptr && processor_has(kernel);
    case ProductKernel::avx512: return kAvx512Kernels.run != nullptr && processor_has(kernel);
    default: return true;
  }
}

PackedMatrix::Storage::Storage(std::int64_t n)
    : values(static_cast<float*>(::operator new(static_cast<std::size_t>(n) * sizeof(float), kLine))), size(n) {}
PackedMatrix::Storage::Storage(Storage&& other) noexcept
    : values(std::exchange(other.values, nullptr)), size(std::exchange(other.size, 0)) {}
PackedMatrix::Storage& PackedMatrix::Storage::operator=(Storage&& other) noexcept {
  std::swap(values, other.values);
  std::swap(size, other.size);
  return *this;
}
PackedMatrix::Storage::~Storage() { ::operator delete(values, kLine); }

PackedMatrix::PackedMatrix(std::int64_t out, std::int64_t in, const Rows& rows) : out_(out), in_(in) {
  const std::int64_t panels = ceil_div(out, kPanel);
  data_ = Storage(panels * kPanel * in);
  parallel_for(panels, [&](std::int64_t p) {
    const std::int64_t count = std::min(kPanel, out - p * kPanel);
    std::vector<float> source(static_cast<std::size_t>(count * in));
    rows(p * kPanel, count, source);
    float* panel = data_.values + p * kPanel * in;
    for (std::int64_t k = 0; k < in; ++k)
      for (std::int64_t o = 0; o < kPanel; ++o)
        panel[k * kPanel + o] = o < count ? source[static_cast<std::size_t>(o * in + k)] : 0.0F;
  });
}

void PackedMatrix::multiply(View<const float> x, View<float> y, ProductKernel kernel) const {
  KV_ASSERT(y.rank() == 2 && y.dim(1) == out_, "one column of y an output");
  multiply_some(x, 0, y, kernel);
}

void PackedMatrix::multiply_some(View<const float> x, std::int64_t first, View<float> y, ProductKernel which) const {
  KV_ASSERT(x.rank() == 2 && y.rank() == 2 && x.dim(1) == in_ && x.dim(0) == y.dim(0), "x [tokens, in], y [tokens, out]");
  KV_ASSERT(first % kPanel == 0 && first >= 0 && first + y.dim(1) <= out_, "outputs of whole panels");
  const MicroKernels& kernel = kernels(which);
  const std::int64_t tokens = x.dim(0), outputs = y.dim(1);
  if (tokens == 0 || outputs == 0) return;
  const std::int64_t block = tokens == 1 ? 1 : kernel.max_tokens, blocks = ceil_div(tokens, block);
  const std::int64_t panels = ceil_div(outputs, kPanel);
  const std::int64_t wide = tokens == 1 ? kernel.single_panels : kernel.panels;  // panels of a tile

  std::vector<float> packed;
  const float* tokens_of = x.data();
  if (tokens > 1) {
    packed.resize(static_cast<std::size_t>(tokens * in_));
    const auto pack = [&](std::int64_t b) { pack_tokens(x, b * block, std::min(block, tokens - b * block), packed.data() + b * block * in_); };
    if (tokens * in_ > 1 << 16)
      parallel_for(blocks, pack);
    else
      for (std::int64_t b = 0; b < blocks; ++b) pack(b);
    tokens_of = packed.data();
  }

  // Work is cut at panels; a thread takes whole runs of panels, so that the tokens stay in its cache.
  const std::int64_t tiles = ceil_div(panels, wide);
  const bool small = tokens * outputs * in_ < 1 << 18;
  const std::int64_t runs = small ? 1 : std::min<std::int64_t>(tiles, 8 * threads());
  const auto run = [&](std::int64_t r) {
    alignas(64) float edge[16 * 8 * kPanel];
    for (std::int64_t tile = tiles * r / runs; tile < tiles * (r + 1) / runs; ++tile) {
      const std::int64_t panel = tile * wide, count = std::min(wide, panels - panel);
      const std::int64_t width = std::min(count * kPanel, outputs - panel * kPanel);
      for (std::int64_t b = 0; b < blocks; ++b) {
        const std::int64_t rows = std::min(block, tokens - b * block);
        const bool whole = width == count * kPanel;  // the last panel of a matrix may stick out
        float* out = y.data() + b * block * y.stride(0) + panel * kPanel;
        kernel.run(static_cast<int>(rows), static_cast<int>(count),
                   {.x = tokens_of + b * block * in_, .panel = data_.values + (first + panel * kPanel) * in_,
                    .panel_stride = kPanel * in_, .in = in_, .out = whole ? out : edge,
                    .out_stride = whole ? y.stride(0) : count * kPanel});
        if (!whole)
          for (std::int64_t m = 0; m < rows; ++m) std::copy_n(edge + m * count * kPanel, width, out + m * y.stride(0));
      }
    }
  };
  if (runs == 1)
    run(0);
  else
    parallel_for(runs, run);
}

}  // namespace kvatlas::models

// A weight matrix packed for products with many tokens: y = W x for every token, each output one accumulator over the inputs
// in increasing order with fma. So neither the number of tokens in a call, nor threads, nor the instruction set changes a bit.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "core/view.hpp"

namespace kvatlas::models {

/// Which micro-kernel multiplies; all give the same bits. `automatic` takes the widest that the processor has.
enum class ProductKernel : std::uint8_t { automatic, scalar, avx2, avx512 };
/// Whether this processor and build can run it.
bool available(ProductKernel kernel);

class PackedMatrix {
 public:
  /// Fills rows [first, first + count) of the matrix, `in` values each.
  using Rows = std::function<void(std::int64_t first, std::int64_t count, std::span<float> to)>;

  PackedMatrix() = default;
  /// out  outputs (rows of W), in  inputs (columns)
  PackedMatrix(std::int64_t out, std::int64_t in, const Rows& rows);

  std::int64_t out() const { return out_; }
  std::int64_t in() const { return in_; }
  std::int64_t bytes() const { return data_.size * static_cast<std::int64_t>(sizeof(float)); }

  /// y[t, o] = sum over i of x[t, i] W[o, i], from 0, in increasing i, fused.
  /// x  [tokens, in], y  [tokens, out]; rows contiguous, any row stride
  void multiply(View<const float> x, View<float> y, ProductKernel kernel = ProductKernel::automatic) const;
  /// Outputs [first, first + y.dim(1)) alone; first is a multiple of kPanel.
  void multiply_some(View<const float> x, std::int64_t first, View<float> y, ProductKernel kernel = ProductKernel::automatic) const;

  static constexpr std::int64_t kPanel = 16;  // outputs that lie side by side: panel p holds [in][16]

 private:
  // Weights run to gigabytes: aligned to cache lines, not cleared before they are filled.
  struct Storage {
    Storage() = default;
    explicit Storage(std::int64_t n);
    Storage(Storage&& other) noexcept;
    Storage& operator=(Storage&& other) noexcept;
    ~Storage();
    float* values = nullptr;
    std::int64_t size = 0;
  };
  std::int64_t out_ = 0, in_ = 0;
  Storage data_;
};

}  // namespace kvatlas::models

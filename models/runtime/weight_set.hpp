// Weights by name with a reader for their rows, whether they lie in a file or in memory.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/tensor.hpp"
#include "models/files/weight_file.hpp"

namespace kvatlas::models {

struct SourceTensor {
  std::vector<std::int64_t> shape;  // slowest dimension first: a matrix is [out, in]
  /// Rows [first, first + count) as float32; a vector is one row. Safe to call from several threads.
  std::function<void(std::int64_t first, std::int64_t count, std::span<float> to)> rows;
};

class WeightSet {
 public:
  /// The file stays open as long as the set lives: rows are decoded when they are asked for.
  explicit WeightSet(WeightFile file);
  explicit WeightSet(TensorMap tensors);

  const SourceTensor* find(std::string_view name) const;
  const std::map<std::string, SourceTensor, std::less<>>& tensors() const { return tensors_; }

 private:
  std::unique_ptr<WeightFile> file_;
  std::unique_ptr<TensorMap> memory_;
  std::map<std::string, SourceTensor, std::less<>> tensors_;
};

}  // namespace kvatlas::models

#include "models/runtime/weight_set.hpp"

#include <algorithm>

namespace kvatlas::models {

WeightSet::WeightSet(WeightFile file) : file_(std::make_unique<WeightFile>(std::move(file))) {
  for (const TensorInfo& t : file_->tensors())
    tensors_[t.name] = {.shape = t.shape, .rows = [&t](std::int64_t first, std::int64_t count, std::span<float> to) {
                          dequantize(t, first, count, to);
                        }};
}

WeightSet::WeightSet(TensorMap tensors) : memory_(std::make_unique<TensorMap>(std::move(tensors))) {
  for (const auto& entry : *memory_) {
    const NamedTensor& t = entry.second;
    const std::int64_t width = t.dims.empty() ? 1 : t.dims.back();
    tensors_[entry.first] = {.shape = t.dims, .rows = [&t, width](std::int64_t first, std::int64_t count, std::span<float> to) {
                        std::copy_n(t.values.begin() + static_cast<std::ptrdiff_t>(first * width), count * width, to.begin());
                      }};
  }
}

const SourceTensor* WeightSet::find(std::string_view name) const {
  const auto at = tensors_.find(name);
  return at == tensors_.end() ? nullptr : &at->second;
}

}  // namespace kvatlas::models

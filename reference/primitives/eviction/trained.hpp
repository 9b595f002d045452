// Trained parts of an eviction rule, one tensor a layer.
#pragma once

#include <functional>
#include <map>
#include <string_view>

#include "reference/primitives/eviction/faces.hpp"

namespace kvatlas::eviction {

/// Tensors "layer<l>.<name>" of all layers that hold rows, by layer; nothing where formulas call without a file. A dim of 0 allows any size.
/// throws InvalidArgument for a missing tensor, one of another size than `dims` says, or values that are not finite
std::map<int, NamedTensor> trained_by_layer(const OpenInputs& in, const CacheShape& shape, std::string_view name,
                                            const std::function<std::vector<std::int64_t>(const LayerClass&)>& dims);

/// throws InvalidArgument without a file
void require_trained(std::string_view method, const OpenInputs& in);

/// The `open` of a record whose rule needs a trained file.
template <auto F>
std::unique_ptr<KvCache> open_trained(const ParamRow& row, const CacheShape& shape, const OpenInputs& in) {
  require_trained(Faces<F>::rule(row, shape).name, in);
  return Faces<F>::open(row, shape, in);
}

}  // namespace kvatlas::eviction

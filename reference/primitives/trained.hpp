// Tensors of a trained file: found by layer and part, checked, refused in one wording.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/tensor.hpp"

namespace kvatlas {

/// "layer<l>.<part>"
std::string trained_name(int layer, std::string_view part);

/// The tensor of a layer; an axis of 0 in `dims` may have any size above it.
/// throws InvalidArgument for a missing tensor, other axes, or a value that is not finite
const NamedTensor& trained_tensor(const TensorMap& file, int layer, std::string_view part, const std::vector<std::int64_t>& dims);

/// Its values, `count` of them, whatever its axes.
const std::vector<float>& trained_values(const TensorMap& file, int layer, std::string_view part, std::int64_t count);

/// `each` channels below `channels` for each of `heads` heads, none twice in a head; whatever the tensor's axes.
std::vector<std::uint16_t> trained_channels(const TensorMap& file, int layer, std::string_view part, int heads, int each, int channels);

}  // namespace kvatlas

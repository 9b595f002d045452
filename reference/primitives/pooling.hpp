// Pooling of scores along the tokens, stride 1, as many outputs as inputs: a token inherits from its neighbours.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvatlas {

enum class Pooling : std::uint8_t { avg, max };

/// Window of `kernel` tokens centred on each token. `avg` pads with zeros and always divides by the kernel, so scores at
/// both ends are biased low, as in the released codes; its sum runs left to right. `max` pads with -infinity.
/// throws InvalidArgument for an even or non-positive kernel, which has no centre
std::vector<float> pool(std::span<const float> scores, Pooling pooling, int kernel);

/// A window of any width: (kernel - 1) / 2 tokens before, the rest behind, zeros beyond both ends. `avg` sums left to right.
/// throws InvalidArgument for a non-positive kernel
std::vector<float> pool_zero_padded(std::span<const float> scores, Pooling pooling, int kernel);

}  // namespace kvatlas

// Trained parts for methods that cannot open without a file: small random ones, for tests of storage and bits. They say nothing of
// quality.
#pragma once

#include <cstdint>

#include "core/io/tensor.hpp"
#include "reference/method.hpp"

namespace kvatlas::scenarios {

/// Empty for methods that need no file.
TensorMap trained_inputs(const Method& method, const ParamRow& row, const CacheShape& shape, std::int64_t prompt, std::uint64_t seed);

}  // namespace kvatlas::scenarios

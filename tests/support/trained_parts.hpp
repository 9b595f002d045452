// Made-up trained parts, so that methods that need a file come under the loops over all methods.
#pragma once

#include "reference/method.hpp"

namespace kvatlas::test {

/// Seeded tensors in the names and sizes that the method asks for; empty for a method without trained parts.
/// throws std::logic_error for a method whose record needs a file and that has no entry here
TensorMap trained_parts(const Method& method, const CacheShape& shape);

}  // namespace kvatlas::test

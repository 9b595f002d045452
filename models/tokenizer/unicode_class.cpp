#include "models/tokenizer/unicode_class.hpp"

#include <algorithm>

namespace kvatlas::models {

UnicodeClass unicode_class(char32_t code) {
  const std::span<const UnicodeRange> ranges = unicode_ranges();
  const auto range = std::partition_point(ranges.begin(), ranges.end(), [&](const UnicodeRange& r) { return r.last < code; });
  return range == ranges.end() || code < range->first ? UnicodeClass::other : range->kind;
}

}  // namespace kvatlas::models

// The classes of characters that pre-tokenizers tell apart: \p{L}, \p{N} and \s of Unicode, and the rest.
#pragma once

#include <cstdint>
#include <span>

namespace kvatlas::models {

enum class UnicodeClass : std::uint8_t { other, letter, number, space };

struct UnicodeRange {
  std::uint32_t first, last;  // both inclusive
  UnicodeClass kind;
};
/// Ascending; what no range holds is `other`. From unicode_table.cpp, which names its version of Unicode.
std::span<const UnicodeRange> unicode_ranges();

/// `other` for everything that is no character, broken bytes among it.
UnicodeClass unicode_class(char32_t code);

}  // namespace kvatlas::models

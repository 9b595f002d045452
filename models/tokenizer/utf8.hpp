// UTF-8 as texts really carry it: well-formed characters, and single bytes wherever it is broken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kvatlas::models {

constexpr char32_t kBrokenByte = 0xFFFFFFFF;

struct Utf8Char {
  char32_t code = kBrokenByte;
  std::size_t bytes = 1;
};

/// The character at `at` (within the text); a byte that begins no well-formed character is a broken byte by itself.
Utf8Char utf8_char(std::string_view text, std::size_t at);

}  // namespace kvatlas::models

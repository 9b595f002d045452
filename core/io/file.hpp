// Whole files in and out: a read is complete or throws, a write appears under its name only when it is complete.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::io {

/// The bytes of a regular file. throws IoError: missing, unreadable, a folder
std::vector<std::byte> read_file(const std::string& path);

/// The same as text.
std::string read_text(const std::string& path);

/// Writes beside `path` and renames, so that nobody sees half a file. throws IoError, leaving nothing behind
void write_file(const std::string& path, std::span<const std::byte> bytes);
void write_text(const std::string& path, std::string_view text);

}  // namespace kvatlas::io

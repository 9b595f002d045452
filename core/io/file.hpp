// Whole files in and out: a read is complete or throws, a write appears under its name only when it is complete.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace kvatlas::io {

/// The bytes of a regular file. throws IoError: missing, unreadable, a folder
std::vector<std::byte> read_file(const std::string& path);

/// Writes beside `path` and renames, so that nobody sees half a file. throws IoError, leaving nothing behind
void write_file(const std::string& path, std::span<const std::byte> bytes);

}  // namespace kvatlas::io

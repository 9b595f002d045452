// NumPy .npy files: one array, little-endian, C order, header versions 1 to 3.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/tensor.hpp"

namespace kvatlas::io {

/// Reads an array out of the bytes of a .npy file; `name` is what errors call it.
/// throws IoError: wrong magic, unknown version, broken header, other order or byte order or type, and any length that
/// disagrees with the file
RawTensor parse_npy(std::span<const std::byte> file, std::string_view name);

RawTensor read_npy(const std::string& path);

/// A version 1.0 file. throws InvalidArgument for bf16, which the format does not have
std::vector<std::byte> npy_bytes(const RawTensor& tensor, std::string_view name);
void write_npy(const std::string& path, const RawTensor& tensor);
/// The same of float32.
std::vector<std::byte> npy_bytes(const NamedTensor& tensor, std::string_view name);
void write_npy(const std::string& path, const NamedTensor& tensor);

}  // namespace kvatlas::io

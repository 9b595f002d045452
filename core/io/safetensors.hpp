// safetensors files: a JSON header that places named arrays, then their bytes without gaps.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/tensor.hpp"

namespace kvatlas::io {

struct SafeTensors {
  std::map<std::string, RawTensor, std::less<>> tensors;
  std::map<std::string, std::string, std::less<>> metadata;

  /// throws InvalidArgument with a suggestion when the file has no tensor of this name
  const RawTensor& at(std::string_view name) const;
};

/// A named array where it lies in the file.
struct PlacedTensor {
  ElementType type = ElementType::f32;
  std::vector<std::int64_t> dims;
  std::span<const std::byte> bytes;
};
struct SafeTensorsView {
  std::map<std::string, PlacedTensor, std::less<>> tensors;
  std::map<std::string, std::string, std::less<>> metadata;
};

/// Reads a header and places its arrays without a copy of them; checks and throws as parse_safetensors does.
SafeTensorsView view_safetensors(std::span<const std::byte> file, std::string_view name);

/// Reads a file from memory; `name` is what errors call it.
/// throws IoError: header larger than the file or 100 MB (the format's own limit), broken or ambiguous JSON, unknown
/// types, sizes that disagree, and arrays that overlap, leave gaps or pass the end
SafeTensors parse_safetensors(std::span<const std::byte> file, std::string_view name);

SafeTensors read_safetensors(const std::string& path);

/// Arrays in the order of their names, data aligned to 8 bytes.
std::vector<std::byte> safetensors_bytes(const SafeTensors& content);
void write_safetensors(const std::string& path, const SafeTensors& content);

/// Every float tensor of a file as float32; for trained parts and weights.
TensorMap read_float_tensors(const std::string& path);

}  // namespace kvatlas::io

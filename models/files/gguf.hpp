// GGUF containers, versions 2 and 3: metadata by key, then tensors, each where it lies in the file. Nothing is copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "models/files/weight_file.hpp"

namespace kvatlas::models {

/// Numbers of the format.
enum class GgufKind : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

/// One metadata value; an array of arrays is checked and kept, but no lookup reads it.
struct GgufValue {
  std::string_view key;
  GgufKind kind = GgufKind::u8;
  GgufKind element = GgufKind::u8;   // of an array
  std::uint64_t count = 1;           // elements of an array
  std::span<const std::byte> bytes;  // elements as the file holds them; texts with their lengths
};

struct Gguf {
  std::string name;  // what errors call the file
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;
  std::vector<GgufValue> metadata;
  std::unordered_map<std::string_view, std::size_t> by_key;
  std::vector<TensorInfo> tensors;

  /// As WeightFile's lookups.
  const GgufValue* find(std::string_view key) const;
  std::optional<std::string_view> text(std::string_view key) const;
  std::optional<std::int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::vector<std::string_view>> texts(std::string_view key) const;
  std::optional<std::vector<std::int64_t>> integers(std::string_view key) const;
  std::optional<std::vector<double>> numbers(std::string_view key) const;
};

bool is_gguf(std::span<const std::byte> file);

/// Reads a container out of a file's bytes, which must outlive what is returned.
/// throws   IoError for whatever does not fit the file or contradicts itself; Unsupported for big-endian files, version 1,
///          tensor types not read here and files of a split model
Gguf parse_gguf(std::span<const std::byte> file, std::string_view name);

}  // namespace kvatlas::models

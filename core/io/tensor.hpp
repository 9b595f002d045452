// Tensors as files carry them: raw elements of any type, and float tensors by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas {

/// Named float matrices and vectors: trained parts, weights, calibration activations.
struct NamedTensor {
  std::vector<std::int64_t> dims;
  std::vector<float> values;
};
using TensorMap = std::map<std::string, NamedTensor, std::less<>>;

namespace io {

enum class ElementType : std::uint8_t { f16, bf16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64, boolean };
std::int64_t bytes_of(ElementType type);
const char* name_of(ElementType type);  // as safetensors spells it: "F16", "BF16", "I8", "BOOL"
constexpr bool is_float(ElementType type) { return type <= ElementType::f64; }

/// Elements in little-endian C order; bytes.size() is the product of dims times bytes_of(type).
struct RawTensor {
  ElementType type = ElementType::f32;
  std::vector<std::int64_t> dims;
  std::vector<std::byte> bytes;
};

/// Product of dims, or -1 when one is negative or the product exceeds 2^62: a size from a file is not trusted.
std::int64_t element_count(const std::vector<std::int64_t>& dims);

/// The elements as float32; wider floats are rounded to nearest even, NaN and infinity pass.
/// throws InvalidArgument for integer types (16-bit integers may hold bf16 patterns: nothing is guessed)
NamedTensor to_floats(const RawTensor& tensor, std::string_view name);

/// The elements as integers. throws InvalidArgument for float types and for u64 values past 2^63 - 1
std::vector<std::int64_t> to_integers(const RawTensor& tensor, std::string_view name);

/// A float32 tensor. throws InvalidArgument when dims and the number of values disagree
RawTensor raw_f32(const NamedTensor& tensor, std::string_view name);

}  // namespace io
}  // namespace kvatlas

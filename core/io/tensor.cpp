#include "core/io/tensor.hpp"

#include <array>
#include <bit>
#include <cstring>
#include <limits>

#include "core/errors.hpp"
#include "core/formats/bf16.hpp"
#include "core/formats/fp16.hpp"

// Files are little-endian; so is every machine that this builds for.
static_assert(std::endian::native == std::endian::little);

namespace kvatlas::io {

namespace {

struct TypeRow {
  const char* name;
  std::int64_t bytes;
};
constexpr std::array<TypeRow, 13> kTypes{{{"F16", 2}, {"BF16", 2}, {"F32", 4}, {"F64", 8}, {"I8", 1}, {"I16", 2}, {"I32", 4},
                                          {"I64", 8}, {"U8", 1}, {"U16", 2}, {"U32", 4}, {"U64", 8}, {"BOOL", 1}}};

template <class T>
T element(const RawTensor& tensor, std::size_t i) {
  T value;
  std::memcpy(&value, tensor.bytes.data() + i * sizeof(T), sizeof(T));
  return value;
}

std::size_t checked_count(const RawTensor& tensor) {
  const std::int64_t n = element_count(tensor.dims);
  KV_ASSERT(n >= 0 && static_cast<std::size_t>(n * bytes_of(tensor.type)) == tensor.bytes.size(),
            "a raw tensor holds as many bytes as its dims say");
  return static_cast<std::size_t>(n);
}

}  // namespace

std::int64_t bytes_of(ElementType type) { return kTypes[static_cast<std::size_t>(type)].bytes; }
const char* name_of(ElementType type) { return kTypes[static_cast<std::size_t>(type)].name; }

std::int64_t element_count(const std::vector<std::int64_t>& dims) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 62;
  bool zero = false;
  std::int64_t n = 1;
  for (const std::int64_t d : dims) {
    if (d < 0) return -1;
    zero = zero || d == 0;
    if (d > 0 && n > kLimit / d) return -1;
    if (d > 0) n *= d;
  }
  return zero ? 0 : n;
}

NamedTensor to_floats(const RawTensor& tensor, std::string_view name) {
  if (tensor.type == ElementType::u16 || tensor.type == ElementType::i16)
    throw InvalidArgument(cat(name, " holds ", name_of(tensor.type),
                              ", which may be bf16 bit patterns; save it as float32, float16 or safetensors BF16"));
  if (!is_float(tensor.type))
    throw InvalidArgument(cat(name, " holds ", name_of(tensor.type), ", must be F16, BF16, F32 or F64"));
  const std::size_t n = checked_count(tensor);
  NamedTensor out{.dims = tensor.dims, .values = std::vector<float>(n)};
  switch (tensor.type) {
    case ElementType::f16:
      for (std::size_t i = 0; i < n; ++i) out.values[i] = num::decode_fp16(element<std::uint16_t>(tensor, i));
      break;
    case ElementType::bf16:
      for (std::size_t i = 0; i < n; ++i) out.values[i] = num::decode_bf16(element<std::uint16_t>(tensor, i));
      break;
    case ElementType::f64:
      for (std::size_t i = 0; i < n; ++i) out.values[i] = static_cast<float>(element<double>(tensor, i));
      break;
    default:
      if (n > 0) std::memcpy(out.values.data(), tensor.bytes.data(), tensor.bytes.size());
  }
  return out;
}

std::vector<std::int64_t> to_integers(const RawTensor& tensor, std::string_view name) {
  if (is_float(tensor.type)) throw InvalidArgument(cat(name, " holds ", name_of(tensor.type), ", must be an integer type"));
  const std::size_t n = checked_count(tensor);
  std::vector<std::int64_t> out(n);
  for (std::size_t i = 0; i < n; ++i) {
    switch (tensor.type) {
      case ElementType::i8: out[i] = element<std::int8_t>(tensor, i); break;
      case ElementType::i16: out[i] = element<std::int16_t>(tensor, i); break;
      case ElementType::i32: out[i] = element<std::int32_t>(tensor, i); break;
      case ElementType::u16: out[i] = element<std::uint16_t>(tensor, i); break;
      case ElementType::u32: out[i] = element<std::uint32_t>(tensor, i); break;
      case ElementType::i64: out[i] = element<std::int64_t>(tensor, i); break;
      case ElementType::u64: {
        const auto value = element<std::uint64_t>(tensor, i);
        if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
          throw InvalidArgument(cat(name, " holds ", value, ", must be at most 2^63 - 1"));
        out[i] = static_cast<std::int64_t>(value);
        break;
      }
      default: out[i] = element<std::uint8_t>(tensor, i);
    }
  }
  return out;
}

RawTensor raw_f32(const NamedTensor& tensor, std::string_view name) {
  if (element_count(tensor.dims) != static_cast<std::int64_t>(tensor.values.size()))
    throw InvalidArgument(cat(name, " has ", tensor.values.size(), " values, must have as many as its dims say (",
                              element_count(tensor.dims), ")"));
  RawTensor out{.type = ElementType::f32, .dims = tensor.dims, .bytes = std::vector<std::byte>(tensor.values.size() * 4)};
  if (!out.bytes.empty()) std::memcpy(out.bytes.data(), tensor.values.data(), out.bytes.size());
  return out;
}

}  // namespace kvatlas::io

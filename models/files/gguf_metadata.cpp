// Typed lookups of GGUF metadata. Lengths were checked when the file was parsed; here the kind of a value is.
#include <cstring>
#include <limits>

#include "core/errors.hpp"
#include "models/files/gguf.hpp"
#include "models/files/printable.hpp"

namespace kvatlas::models {

namespace {

template <class T>
T load(const std::byte* at) {
  T out;
  std::memcpy(&out, at, sizeof(T));
  return out;
}

const char* name_of(GgufKind kind) {
  constexpr const char* kNames[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "boolean", "text", "array", "u64", "i64", "f64"};
  return kNames[static_cast<std::size_t>(kind)];
}

/// The value under a key when it is of the wanted form, an array or not.
const GgufValue* wanted(const Gguf& file, std::string_view key, bool array, std::string_view what) {
  const GgufValue* value = file.find(key);
  if (value != nullptr && (value->kind == GgufKind::array) != array)
    throw IoError(cat(file.name, ": ", printable(key), " holds ", array ? "one " : "an array of ", name_of(value->element), ", must be ", what));
  return value;
}

[[noreturn]] void wrong_kind(const Gguf& file, const GgufValue& value, std::string_view what) {
  throw IoError(cat(file.name, ": ", printable(value.key), " holds ", value.kind == GgufKind::array ? "an array of " : "", name_of(value.element),
                    ", must be ", what));
}

std::int64_t integer_at(const Gguf& file, const GgufValue& value, std::size_t i, bool booleans, std::string_view what) {
  const std::byte* p = value.bytes.data();
  switch (value.element) {
    case GgufKind::u8: return load<std::uint8_t>(p + i);
    case GgufKind::i8: return load<std::int8_t>(p + i);
    case GgufKind::u16: return load<std::uint16_t>(p + 2 * i);
    case GgufKind::i16: return load<std::int16_t>(p + 2 * i);
    case GgufKind::u32: return load<std::uint32_t>(p + 4 * i);
    case GgufKind::i32: return load<std::int32_t>(p + 4 * i);
    case GgufKind::i64: return load<std::int64_t>(p + 8 * i);
    case GgufKind::u64: {
      const auto n = load<std::uint64_t>(p + 8 * i);
      if (n > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        throw IoError(cat(file.name, ": ", printable(value.key), " holds ", n, ", must be at most 2^63 - 1"));
      return static_cast<std::int64_t>(n);
    }
    case GgufKind::boolean:
      if (booleans) return load<std::uint8_t>(p + i) != 0 ? 1 : 0;
      break;
    default: break;
  }
  wrong_kind(file, value, what);
}

double number_at(const Gguf& file, const GgufValue& value, std::size_t i, std::string_view what) {
  if (value.element == GgufKind::f32) return static_cast<double>(load<float>(value.bytes.data() + 4 * i));
  if (value.element == GgufKind::f64) return load<double>(value.bytes.data() + 8 * i);
  return static_cast<double>(integer_at(file, value, i, false, what));
}

std::string_view next_text(std::span<const std::byte>& bytes) {
  const auto size = static_cast<std::size_t>(load<std::uint64_t>(bytes.data()));
  const std::string_view out(reinterpret_cast<const char*>(bytes.data()) + 8, size);
  bytes = bytes.subspan(8 + size);
  return out;
}

}  // namespace

const GgufValue* Gguf::find(std::string_view key) const {
  const auto found = by_key.find(key);
  return found == by_key.end() ? nullptr : &metadata[found->second];
}

std::optional<std::string_view> Gguf::text(std::string_view key) const {
  const GgufValue* value = wanted(*this, key, false, "a text");
  if (value == nullptr) return std::nullopt;
  if (value->kind != GgufKind::text) wrong_kind(*this, *value, "a text");
  std::span<const std::byte> bytes = value->bytes;
  return next_text(bytes);
}

std::optional<std::int64_t> Gguf::integer(std::string_view key) const {
  const GgufValue* value = wanted(*this, key, false, "an integer");
  if (value == nullptr) return std::nullopt;
  return integer_at(*this, *value, 0, false, "an integer");
}

std::optional<double> Gguf::number(std::string_view key) const {
  const GgufValue* value = wanted(*this, key, false, "a number");
  if (value == nullptr) return std::nullopt;
  return number_at(*this, *value, 0, "a number");
}

std::optional<bool> Gguf::boolean(std::string_view key) const {
  const GgufValue* value = wanted(*this, key, false, "a boolean");
  if (value == nullptr) return std::nullopt;
  if (value->kind != GgufKind::boolean) wrong_kind(*this, *value, "a boolean");
  return value->bytes[0] != std::byte{0};
}

std::optional<std::vector<std::string_view>> Gguf::texts(std::string_view key) const {
  const GgufValue* value = wanted(*this, key, true, "an array of texts");
  if (value == nullptr) return std::nullopt;
  if (value->element != GgufKind::text) wrong_kind(*this, *value, "an array of texts");
  std::vector<std::string_view> out;
  out.reserve(static_cast<std::size_t>(value->count));
  std::span<const std::byte> bytes = value->bytes;
  while (!bytes.empty()) out.push_back(next_text(bytes));
  return out;
}

std::optional<std::vector<std::int64_t>> Gguf::integers(std::string_view key) const {
  const GgufValue* value = wanted(*this, key, true, "an array of integers");
  if (value == nullptr) return std::nullopt;
  std::vector<std::int64_t> out;
  out.reserve(value->element == GgufKind::array ? 0 : static_cast<std::size_t>(value->count));
  for (std::size_t i = 0; i < value->count; ++i) out.push_back(integer_at(*this, *value, i, true, "an array of integers"));
  return out;
}

std::optional<std::vector<double>> Gguf::numbers(std::string_view key) const {
  const GgufValue* value = wanted(*this, key, true, "an array of numbers");
  if (value == nullptr) return std::nullopt;
  std::vector<double> out;
  out.reserve(value->element == GgufKind::array ? 0 : static_cast<std::size_t>(value->count));
  for (std::size_t i = 0; i < value->count; ++i) out.push_back(number_at(*this, *value, i, "an array of numbers"));
  return out;
}

}  // namespace kvatlas::models

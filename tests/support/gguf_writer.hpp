// Writes small GGUF files for tests: metadata and tensors as given, right or deliberately wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::testing {

class GgufWriter {
 public:
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;  // what the layout follows; metadata may say otherwise

  GgufWriter& text(std::string_view key, std::string_view value) {
    open(key, 8);
    put_text(metadata_, value);
    return *this;
  }
  GgufWriter& u32(std::string_view key, std::uint32_t value) {
    open(key, 4);
    put(metadata_, value);
    return *this;
  }
  GgufWriter& i64(std::string_view key, std::int64_t value) {
    open(key, 11);
    put(metadata_, value);
    return *this;
  }
  GgufWriter& u64(std::string_view key, std::uint64_t value) {
    open(key, 10);
    put(metadata_, value);
    return *this;
  }
  GgufWriter& f32(std::string_view key, float value) {
    open(key, 6);
    put(metadata_, value);
    return *this;
  }
  GgufWriter& boolean(std::string_view key, bool value) {
    open(key, 7);
    put(metadata_, static_cast<std::uint8_t>(value ? 1 : 0));
    return *this;
  }
  GgufWriter& texts(std::string_view key, const std::vector<std::string>& values) {
    open_array(key, 8, values.size());
    for (const std::string& value : values) put_text(metadata_, value);
    return *this;
  }
  GgufWriter& i32s(std::string_view key, const std::vector<std::int32_t>& values) {
    open_array(key, 5, values.size());
    for (const std::int32_t value : values) put(metadata_, value);
    return *this;
  }
  GgufWriter& f32s(std::string_view key, const std::vector<float>& values) {
    open_array(key, 6, values.size());
    for (const float value : values) put(metadata_, value);
    return *this;
  }
  /// Any bytes as one metadata entry: a value type and what follows it.
  GgufWriter& raw(std::string_view key, std::uint32_t kind, std::string_view bytes) {
    open(key, kind);
    metadata_ += bytes;
    return *this;
  }

  /// dims as the file has them, fastest first; type by the number of the format.
  GgufWriter& tensor(std::string_view name, const std::vector<std::uint64_t>& dims, std::uint32_t type, std::string_view bytes) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment, '\0');
    return tensor_at(name, dims, type, data_.size(), bytes);
  }
  GgufWriter& tensor(std::string_view name, const std::vector<std::uint64_t>& dims, const std::vector<float>& values) {
    return tensor(name, dims, 0, {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)});
  }
  /// An entry with an offset of its own; `bytes` are appended wherever the data ends.
  GgufWriter& tensor_at(std::string_view name, const std::vector<std::uint64_t>& dims, std::uint32_t type, std::uint64_t offset, std::string_view bytes) {
    put_text(infos_, name);
    put(infos_, static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t d : dims) put(infos_, d);
    put(infos_, type);
    put(infos_, offset);
    data_ += bytes;
    ++tensors_;
    return *this;
  }

  std::string bytes() const {
    std::string out = "GGUF";
    put(out, version);
    put(out, tensors_);
    put(out, entries_);
    out += metadata_ + infos_;
    if (tensors_ > 0) out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
    return out + data_;
  }

 private:
  template <class T>
  static void put(std::string& out, T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    out.append(bytes, sizeof(T));
  }
  static void put_text(std::string& out, std::string_view text) {
    put(out, static_cast<std::uint64_t>(text.size()));
    out += text;
  }
  void open(std::string_view key, std::uint32_t kind) {
    put_text(metadata_, key);
    put(metadata_, kind);
    ++entries_;
  }
  void open_array(std::string_view key, std::uint32_t element, std::size_t count) {
    open(key, 9);
    put(metadata_, element);
    put(metadata_, static_cast<std::uint64_t>(count));
  }

  std::string metadata_, infos_, data_;
  std::uint64_t tensors_ = 0, entries_ = 0;
};

/// The bytes of a text, as parsers take them.
inline std::vector<std::byte> as_bytes(std::string_view text) {
  std::vector<std::byte> out(text.size());
  if (!text.empty()) std::memcpy(out.data(), text.data(), text.size());
  return out;
}

}  // namespace kvatlas::testing

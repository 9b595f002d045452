// A file of weights, read-only and mapped into memory: GGUF, safetensors, or safetensors in shards with an index.
// The file is untrusted input: every length, offset and count is checked against its size before it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::models {

enum class TensorType : std::uint8_t { f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k };

const char* name_of(TensorType type);

/// Values and bytes of one block; 1 value for the plain types.
struct BlockShape {
  int values;
  int bytes;
};
BlockShape block_shape(TensorType type);

struct TensorInfo {
  std::string name;
  TensorType type = TensorType::f32;
  std::vector<std::int64_t> shape;   // slowest dimension first: a matrix is [out rows, in columns], whichever order the file keeps
  std::span<const std::byte> bytes;  // in the mapped file; exactly what type and shape need

  /// Length of a row: the last dimension; 1 for a tensor without dimensions.
  std::int64_t columns() const;
  /// Product of the other dimensions; 1 for a vector.
  std::int64_t rows() const;
};

/// What was parsed out of the bytes of a file, defined beside its parsers.
struct Gguf;
struct WeightContent;

/// Move only; views into the file (tensor bytes, metadata texts) stay valid when it is moved and end with it.
class WeightFile {
 public:
  /// Opens a GGUF file, a safetensors file or the index of safetensors shards (their files lie beside it). Content decides, not the name.
  /// throws   IoError when it cannot be read, is none of these, or is broken; Unsupported for a tensor type or byte order not read here
  static WeightFile open(const std::filesystem::path& path);

  WeightFile(WeightFile&&) noexcept;
  WeightFile& operator=(WeightFile&&) noexcept;
  ~WeightFile();

  const std::filesystem::path& path() const;
  /// In the order of the file; of shards in the order of their names.
  std::span<const TensorInfo> tensors() const;
  /// nullptr when there is none of that name.
  const TensorInfo* find(std::string_view name) const;
  /// Names of safetensors entries that hold integers or truth values: buffers, not weights.
  std::span<const std::string> unread() const;

  /// Metadata of a GGUF file; safetensors has none (its config.json lies beside it). Absent key: no value.
  /// throws   IoError when the key holds another kind of value; integer() and integers() also beyond 2^63 - 1
  bool has(std::string_view key) const;
  std::vector<std::string_view> keys() const;  // in the order of the file
  std::optional<std::string_view> text(std::string_view key) const;
  std::optional<std::int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;  // an integer counts as a number
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::vector<std::string_view>> texts(std::string_view key) const;
  std::optional<std::vector<std::int64_t>> integers(std::string_view key) const;  // booleans count as 0 and 1
  std::optional<std::vector<double>> numbers(std::string_view key) const;
  /// The same metadata for who needs no tensors; nullptr for safetensors.
  const Gguf* gguf() const;

 private:
  explicit WeightFile(std::unique_ptr<WeightContent> content);
  std::unique_ptr<WeightContent> content_;
};

/// Decodes rows to float32, bit for bit as the `gguf` Python package does. Rows are independent of each other.
/// first_row, rows   within tensor.rows()
/// out               [rows, columns]
/// throws            InvalidArgument for rows outside the tensor or an `out` of another size
void dequantize(const TensorInfo& tensor, std::int64_t first_row, std::int64_t rows, std::span<float> out);

}  // namespace kvatlas::models

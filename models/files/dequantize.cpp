// Tensor types and the way from their bytes to float32.
#include <array>
#include <cstring>

#include "core/errors.hpp"
#include "core/formats/bf16.hpp"
#include "core/formats/fp16.hpp"
#include "core/formats/ggml_blocks.hpp"
#include "core/formats/ggml_super_blocks.hpp"
#include "models/files/printable.hpp"
#include "models/files/weight_file.hpp"

namespace kvatlas::models {

namespace {

std::uint16_t load16(const std::byte* at) {
  std::uint16_t code = 0;
  std::memcpy(&code, at, 2);
  return code;
}

}  // namespace

const char* name_of(TensorType type) {
  constexpr std::array<const char*, 11> kNames{"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"};
  return kNames[static_cast<std::size_t>(type)];
}

BlockShape block_shape(TensorType type) {
  constexpr std::array<BlockShape, 11> kShapes{{{1, 4}, {1, 2}, {1, 2}, {32, 18}, {32, 20}, {32, 22}, {32, 24}, {32, 34}, {256, 144}, {256, 176}, {256, 210}}};
  return kShapes[static_cast<std::size_t>(type)];
}

std::int64_t TensorInfo::columns() const { return shape.empty() ? 1 : shape.back(); }

std::int64_t TensorInfo::rows() const {
  std::int64_t n = 1;
  for (std::size_t d = 0; d + 1 < shape.size(); ++d) n *= shape[d];
  return n;
}

void dequantize(const TensorInfo& tensor, std::int64_t first_row, std::int64_t rows, std::span<float> out) {
  if (first_row < 0 || rows < 0 || first_row > tensor.rows() || rows > tensor.rows() - first_row)
    throw InvalidArgument(cat("rows ", first_row, " to ", first_row, " + ", rows, " of tensor ", printable(tensor.name), ", which has ", tensor.rows()));
  const auto columns = static_cast<std::size_t>(tensor.columns());
  if (out.size() != static_cast<std::size_t>(rows) * columns)
    throw InvalidArgument(cat("room for ", out.size(), " values, ", rows, " rows of tensor ", printable(tensor.name), " have ", columns, " each"));
  if (out.empty()) return;
  const BlockShape block = block_shape(tensor.type);
  const std::size_t row_bytes = columns / static_cast<std::size_t>(block.values) * static_cast<std::size_t>(block.bytes);
  const std::span<const std::byte> bytes = tensor.bytes.subspan(static_cast<std::size_t>(first_row) * row_bytes, static_cast<std::size_t>(rows) * row_bytes);
  switch (tensor.type) {
    case TensorType::f32: std::memcpy(out.data(), bytes.data(), bytes.size()); return;
    case TensorType::f16:
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = num::decode_fp16(load16(bytes.data() + 2 * i));
      return;
    case TensorType::bf16:
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = num::decode_bf16(load16(bytes.data() + 2 * i));
      return;
    case TensorType::q4_0: num::decode_ggml(num::GgmlType::q4_0, bytes, out); return;
    case TensorType::q4_1: num::decode_ggml(num::GgmlType::q4_1, bytes, out); return;
    case TensorType::q5_0: num::decode_ggml(num::GgmlType::q5_0, bytes, out); return;
    case TensorType::q5_1: num::decode_ggml(num::GgmlType::q5_1, bytes, out); return;
    case TensorType::q8_0: num::decode_ggml(num::GgmlType::q8_0, bytes, out); return;
    case TensorType::q4_k: num::decode_ggml_super(num::GgmlSuperType::q4_k, bytes, out); return;
    case TensorType::q5_k: num::decode_ggml_super(num::GgmlSuperType::q5_k, bytes, out); return;
    case TensorType::q6_k: num::decode_ggml_super(num::GgmlSuperType::q6_k, bytes, out); return;
  }
}

}  // namespace kvatlas::models

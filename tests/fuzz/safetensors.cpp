#include "core/io/safetensors.hpp"

#include "core/errors.hpp"
#include "models/files/safetensors_weights.hpp"
#include "tests/fuzz/targets.hpp"

namespace kvatlas::fuzz {

void fuzz_safetensors(std::span<const std::byte> data) {
  try {
    const io::SafeTensors content = io::parse_safetensors(data, "file");
    // What was read can be written and read again.
    const io::SafeTensors again = io::parse_safetensors(io::safetensors_bytes(content), "again");
    require(again.tensors.size() == content.tensors.size() && again.metadata == content.metadata, "safetensors come back");
    for (const auto& [name, tensor] : content.tensors)
      if (io::is_float(tensor.type)) io::to_floats(tensor, name);
  } catch (const Error&) {
  }
  try {
    for (const models::TensorInfo& tensor : models::parse_safetensors_weights(data, "file").tensors) {
      if (tensor.bytes.size() > 1 << 16) continue;
      std::vector<float> values(static_cast<std::size_t>(tensor.rows() * tensor.columns()));
      models::dequantize(tensor, 0, tensor.rows(), values);
    }
  } catch (const Error&) {
  }
  try {
    for (const auto& [tensor, file] : models::parse_safetensors_index(text_of(data), "index"))
      require(file.find('/') == std::string::npos && file != "..", "shards lie beside their index");
  } catch (const Error&) {
  }
}

}  // namespace kvatlas::fuzz

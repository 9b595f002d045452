// Weights in safetensors: one file, or shards that an index names. What JSON says is checked here and in core/io/safetensors.
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/files/weight_file.hpp"

namespace kvatlas::models {

struct SafetensorsWeights {
  std::vector<TensorInfo> tensors;  // in the order of the file's data
  std::vector<std::string> unread;  // integers and truth values: buffers that some checkpoints carry beside their weights
};

/// The float tensors of one file's bytes. throws IoError as io::view_safetensors; Unsupported for F64
SafetensorsWeights parse_safetensors_weights(std::span<const std::byte> file, std::string_view name);

/// An index: tensor name -> file name, both as the text has them.
/// throws   IoError for anything but {"weight_map": {name: file}}, for names given twice and for file names that leave the folder
std::map<std::string, std::string> parse_safetensors_index(std::string_view text, std::string_view name);

}  // namespace kvatlas::models

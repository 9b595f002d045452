// What a forward pass must know beside the layer graph: norms, activation, scales, and how the file orders its rows.
#pragma once

#include <filesystem>
#include <span>
#include <string_view>

#include "models/files/weight_file.hpp"
#include "models/model.hpp"
#include "models/runtime/pointwise.hpp"

namespace kvatlas::models {

struct Architecture {
  Model model;  // the layer graph, widths, ties
  float norm_eps = 1e-6F;
  bool post_norms = false;     // attention and FFN outputs are normed before they join the stream
  bool norm_adds_one = false;  // a stored norm weight w stands for 1 + w
  Activation activation = Activation::silu;
  float embedding_scale = 1.0F;   // multiplies every embedding
  bool interleaved_rows = false;  // rows of W_q and W_k are stored for rotation of neighbouring channels
};

/// From the text of a Hugging Face config.json.
/// throws   InvalidArgument as import_config; Unsupported for a model type, rope scaling or part that the pass does not know
Architecture architecture_of_config(std::string_view text, std::string_view origin);

/// From the metadata and tensors of a GGUF file; `origin` is its path.
/// throws   also IoError for metadata that is missing or out of range
Architecture architecture_of(const Gguf& file, std::span<const TensorInfo> tensors, std::string_view origin);

/// From the metadata of a GGUF file, or from the config.json beside a safetensors file.
/// throws   also IoError when that is missing or unreadable
Architecture architecture_of(const WeightFile& file);

}  // namespace kvatlas::models

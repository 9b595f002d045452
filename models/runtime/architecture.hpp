// What a forward pass must know beside the layer graph: norms, activation, scales, and how the file orders its rows.
#pragma once

#include <filesystem>
#include <string_view>

#include "models/files/weight_file.hpp"
#include "models/model.hpp"
#include "models/runtime/pointwise.hpp"

namespace kvatlas::models {

struct Architecture {
  Model model;  // the layer graph, widths, ties
  float norm_eps = 1e-6F;
  bool norm_adds_one = false;  // a stored norm weight w stands for 1 + w
  Activation activation = Activation::silu;
  float embedding_scale = 1.0F;   // multiplies every embedding
  bool interleaved_rows = false;  // rows of W_q and W_k are stored for rotation of neighbouring channels
};

/// From the text of a Hugging Face config.json.
/// throws   InvalidArgument as import_config; Unsupported where `why_not_run` has a sentence
Architecture architecture_of_config(std::string_view text, std::string_view origin);

/// From the metadata of a GGUF file, or from the config.json beside a safetensors file.
/// throws   also IoError when that is missing or unreadable
Architecture architecture_of(const WeightFile& file);

}  // namespace kvatlas::models

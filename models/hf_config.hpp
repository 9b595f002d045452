// Import of a Hugging Face config.json as a model descriptor.
#pragma once

#include <filesystem>
#include <string_view>

#include "models/model.hpp"

namespace kvatlas::models {

/// Imports the text of a config.json.
/// text     the file's content; an object `kvatlas` in it may name slug, name, source, aliases and published figures
/// origin   what error messages and `source` call it, a path as a rule
/// returns  the descriptor; what was not understood or had to be assumed is in `warnings`
/// throws   InvalidArgument for what cannot be (field, value, allowed); Unsupported for models that are no decoders of
///          attention, latent or linear-attention layers
Model import_config(std::string_view text, std::string_view origin);

/// Reads and imports a file. throws IoError when it cannot be read.
Model import_config_file(const std::filesystem::path& path);

}  // namespace kvatlas::models

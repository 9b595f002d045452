// Import of the tokenizer.json that lies beside safetensors weights: byte-level BPE (SmolLM2, Llama 3, Qwen).
#pragma once

#include <filesystem>
#include <memory>
#include <string_view>

#include "models/tokenizer/tokenizer.hpp"

namespace kvatlas::models {

/// Reads a tokenizer out of the text of a tokenizer.json; `name` is what errors call it. Unicode normalisation (NFC) that a file asks for
/// is left out: a text comes back as it was given.
/// throws   Unsupported for another model than byte-level BPE or steps that are not known here; IoError for what is broken
std::unique_ptr<Tokenizer> parse_tokenizer_json(std::string_view text, std::string_view name);

/// throws IoError also when the file cannot be read
std::unique_ptr<Tokenizer> load_tokenizer_json(const std::filesystem::path& path);

}  // namespace kvatlas::models

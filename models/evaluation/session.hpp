// What an evaluation starts from: a model out of a file, its tokenizer, and methods by their recipes.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "models/evaluation/lockstep.hpp"
#include "models/tokenizer/tokenizer.hpp"
#include "reference/compose/recipe.hpp"

namespace kvatlas::models {

struct LoadedModel {
  Transformer transformer;
  std::unique_ptr<Tokenizer> tokenizer;
  std::string name;

  /// The token that opens every text; none for models that want none.
  std::optional<TokenId> begin() const;
  /// A piece of text without begin or end tokens. Bytes that the vocabulary cannot spell are left out.
  std::vector<TokenId> encode(std::string_view text) const;
};

/// A GGUF file, or safetensors (one file, or the index of its shards) with its config.json and tokenizer.json beside it. A
/// vocabulary of the 256 bytes and a few more needs no tokenizer.json: the token behind the bytes begins a text.
/// throws   IoError, InvalidArgument, Unsupported with one sentence
LoadedModel load_weights(const std::filesystem::path& path);

/// A recipe on this shape. Where its methods refuse sliding windows, the windowed layers stay plain, and the label says so.
/// inputs  must outlive the candidate
/// throws  Unsupported when the recipe cannot serve the shape
Candidate candidate_of(const Recipe& recipe, const CacheShape& shape, const OpenInputs& inputs);

/// 64-bit FNV-1a in hex: which text a figure is of.
std::string text_hash(std::string_view text);

}  // namespace kvatlas::models

// The zoo: models that ship with the library, imported from their configs on first use; and the door to any other.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string_view>

#include "models/model.hpp"

namespace kvatlas::models {

/// Every shipped model, ordered by slug.
std::span<const Model> all_models();

/// throws InvalidArgument with a suggestion when no model has this slug or alias.
const Model& find_model(std::string_view slug_or_alias);

/// A shipped model, or the import of a config.json: of any path that ends in .json or exists.
/// throws InvalidArgument, Unsupported or IoError as find_model and import_config_file do.
Model load_model(std::string_view slug_or_path);

/// The record that the command line prints: every figure with its provenance and source.
nlohmann::json to_json(const Model& model);

}  // namespace kvatlas::models

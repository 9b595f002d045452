#include "models/registry.hpp"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "core/errors.hpp"
#include "models/hf_config.hpp"
#include "models/zoo.hpp"

namespace kvatlas::models {

namespace {

const Model* lookup(std::string_view word) {
  for (const Model& m : all_models())
    if (m.slug == word || std::find(m.aliases.begin(), m.aliases.end(), word) != m.aliases.end()) return &m;
  return nullptr;
}

}  // namespace

std::span<const Model> all_models() {
  static const std::vector<Model> models = [] {
    std::vector<Model> all;
    for (const ZooFile& file : zoo_files()) all.push_back(import_config(file.text, file.name));
    std::sort(all.begin(), all.end(), [](const Model& a, const Model& b) { return a.slug < b.slug; });
    return all;
  }();
  return models;
}

const Model& find_model(std::string_view slug_or_alias) {
  if (const Model* model = lookup(slug_or_alias)) return *model;
  std::vector<std::string_view> names;
  for (const Model& m : all_models()) {
    names.push_back(m.slug);
    names.insert(names.end(), m.aliases.begin(), m.aliases.end());
  }
  throw InvalidArgument(unknown_name("model", slug_or_alias, names));
}

Model load_model(std::string_view slug_or_path) {
  if (const Model* model = lookup(slug_or_path)) return *model;
  const std::filesystem::path path{std::string(slug_or_path)};
  std::error_code ignored;  // a name too odd for a path is no path
  if (slug_or_path.ends_with(".json") || std::filesystem::is_regular_file(path, ignored))
    return import_config_file(path);
  return find_model(slug_or_path);
}

}  // namespace kvatlas::models

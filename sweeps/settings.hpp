// Settings worth trying beside a method's defaults: what sweeps over "all" methods and recommend evaluate.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "reference/compose/recipe.hpp"

namespace kvatlas::sweep {

/// Values of a parameter that are tried on every method that has it, one parameter at a time.
struct CommonSetting {
  std::string_view parameter;
  std::string_view values;  // list or range, as in recipes
  std::string_view why;
};
std::span<const CommonSetting> common_settings();

/// Recipes of several parts that are worth trying whatever the registry holds; used where all their methods exist.
struct ComposedSetting {
  std::string_view recipe;
  std::string_view why;
};
std::span<const ComposedSetting> composed_settings();

struct Settings {
  std::vector<Recipe> recipes;
  std::vector<std::string> left_out;  // "kivi: bits is "8", must be an integer from 1 to 4"
};

/// True for methods of models that write from left to right, as all of ours do, and whose text nobody needs to mark: diffusion models have
/// caches of their own, and a cache that lets marked spans go is a full one as long as nobody marks any.
bool writes_in_order(const Method& method);

/// Every such method of the registry at its defaults.
std::vector<Recipe> default_recipes();

/// Every such method at its defaults and at the common settings, then the composed ones; each once.
Settings several_settings();

}  // namespace kvatlas::sweep

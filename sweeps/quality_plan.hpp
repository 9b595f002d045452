// What a quality table holds: every method at several settings and contexts, out of one small document.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer_graph.hpp"
#include "reference/compose/recipe.hpp"

namespace kvatlas::sweep {

/// A document like models/evaluation/tables/table.json. A setting is a method's parameters as recipes write them; in it C/8 is an
/// eighth of the context, rounded down, so that budgets are shares of it.
struct QualityPlan {
  std::vector<std::int64_t> contexts;
  std::string protocol = "a";
  std::int64_t scored = 768, windows = 1, chunk = 0, seed = 0;
  Dtype dtype = Dtype::bf16;
  std::int64_t batch = 8;  // recipes that read the text together; a stop loses at most so many
  std::vector<std::vector<std::string>> settings;             // a method takes the first whose parameters it has
  std::map<std::string, std::vector<std::string>> methods;  // ... unless its own stand here

  /// The plain cache first, then every method of the registry at its settings; one without any at its defaults.
  std::vector<Recipe> recipes(std::int64_t context) const;
};

/// throws InvalidArgument "ORIGIN: PLACE is VALUE, must be ALLOWED", also for settings that cannot be
QualityPlan read_quality_plan(std::string_view text, std::string_view origin);

}  // namespace kvatlas::sweep

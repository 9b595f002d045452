// What is known of a recipe's quality on a model, and how good the evidence is.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "models/model.hpp"
#include "reference/compose/recipe.hpp"

namespace kvatlas::sweep {

/// `value` is the share of the plain cache's quality that is retained (1 = all).
struct Quality {
  std::optional<double> value;
  std::string grade;    // M, C, P, F, X, or empty when unknown
  std::string model;    // the model it was measured on
  std::string source;   // where it is from; for unknown quality the command that would settle it
  std::string provenance{};  // measured, published, ...; computed for the plain cache; empty when unknown
};

/// Looks up evidence; grades not in `accepted` do not count. An empty answer is "unknown".
using QualityEvidence = std::function<std::optional<Quality>(const models::Model&, const Recipe&, const std::string& accepted)>;

/// Evidence in the `quality` table of a store. throws IoError
QualityEvidence quality_of_store(const std::string& path);

/// What the program was built with (published figures, shipped tables), and a store's beside it where one is named. throws IoError
QualityEvidence known_quality(const std::optional<std::string>& store);

/// The evidence for a recipe; the plain cache's is 1 by definition, and of what is unknown the source is the command that would settle it.
Quality quality_of(const QualityEvidence& evidence, const models::Model& model, const Recipe& recipe, const std::string& accepted);

/// "m,p" or "mp" to accepted grades in capitals; throws InvalidArgument
std::string parse_grades(const std::string& text);

/// Accepted grades as a person writes them: "MP" -> "m, p".
std::string spell_grades(std::string_view grades);

}  // namespace kvatlas::sweep

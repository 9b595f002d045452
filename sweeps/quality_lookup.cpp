#include "sweeps/quality_lookup.hpp"

#include <cctype>
#include <map>
#include <vector>

#include "core/errors.hpp"
#include "sweeps/quality.hpp"
#include "sweeps/quality_table.hpp"
#include "sweeps/store.hpp"

namespace kvatlas::sweep {

namespace {

/// The model that ships for tests and first steps: what a method does to it speaks for no other.
constexpr std::string_view kEmbedded = "embedded";

struct Known {
  std::string model;
  Quality quality;
};
using KnownByRecipe = std::map<std::string, std::vector<Known>>;

/// The grade with which a figure of one model counts for another: of its family (F: the name's first word) or a proxy (X).
char grade_for(const Known& known, const models::Model& model) {
  if (known.model == model.slug) return known.quality.grade.front();
  if (known.model == kEmbedded || (known.quality.grade != "M" && known.quality.grade != "P")) return '-';
  const auto word = [](const std::string& slug) { return slug.substr(0, slug.find('-')); };
  return word(known.model) == word(model.slug) ? 'F' : 'X';
}

QualityEvidence look_up_in(KnownByRecipe rows) {
  return [rows = std::move(rows)](const models::Model& model, const Recipe& recipe, const std::string& accepted) -> std::optional<Quality> {
    const auto found = rows.find(recipe.canonical());
    if (found == rows.end()) return std::nullopt;
    // The strongest accepted grade counts, and within it the worst figure: a limit must hold for every task that was tried.
    for (const char grade : std::string_view("MPCFX")) {
      std::optional<Quality> worst;
      if (accepted.find(grade) == std::string::npos) continue;
      for (const Known& r : found->second)
        if (grade_for(r, model) == grade && (!worst || *r.quality.value < *worst->value)) {
          worst = r.quality;
          worst->grade = std::string(1, grade);
        }
      if (worst) return worst;
    }
    return std::nullopt;
  };
}

void add_store(KnownByRecipe& rows, const std::string& path) {
  std::optional<Database> db;
  open_for_reading(db, path);
  const char* windows = db->integer("PRAGMA user_version") < 4 ? "1" : "max(1, windows)";  // what older stores do not say
  Statement s(*db, cat("SELECT model, recipe, retained, grade, quality_model, source, provenance FROM quality WHERE retained IS NOT NULL"
                   // Older versions kept what runs too small to be evidence retained.
                   " AND NOT (metric = 'perplexity' AND provenance = 'measured' AND (n < ? * ", windows, " OR ci95_low IS NULL)) ORDER BY id"));
  s.bind(1, kLeastScored);
  while (s.step())
    rows[std::string(s.text(1))].push_back(
        {std::string(s.text(0)), {.value = s.number(2), .grade = std::string(s.text(3)), .model = std::string(s.text(4)), .source = std::string(s.text(5)), .provenance = std::string(s.text(6))}});
}

}  // namespace

QualityEvidence quality_of_store(const std::string& path) {
  KnownByRecipe rows;
  add_store(rows, path);
  return look_up_in(std::move(rows));
}

QualityEvidence known_quality(const std::optional<std::string>& store) {
  KnownByRecipe rows;
  for (const QualityRow& r : shipped_quality())
    if (r.retained)
      rows[r.recipe].push_back({r.model, {.value = r.retained, .grade = r.grade, .model = r.quality_model, .source = r.source, .provenance = r.grade == "P" ? "published" : "measured"}});
  if (store) add_store(rows, *store);
  return look_up_in(std::move(rows));
}

Quality quality_of(const QualityEvidence& evidence, const models::Model& model, const Recipe& recipe, const std::string& accepted) {
  if (recipe.canonical() == "full") return {.value = 1.0, .grade = "", .model = model.slug, .source = "by definition: quality is counted against the plain cache", .provenance = "computed"};
  if (evidence)
    if (const auto found = evidence(model, recipe, accepted)) return *found;
  return {.value = std::nullopt, .grade = "", .model = "", .source = cat("unknown; kvatlas evaluate --weights FILE --text FILE --method \"", recipe.canonical(), "\" would settle it")};
}

std::string parse_grades(const std::string& text) {
  std::string out;
  for (const char raw : text) {
    const char c = static_cast<char>(std::toupper(static_cast<unsigned char>(raw)));
    if (c == ',' || c == ' ') continue;
    if (std::string_view("MPCFX").find(c) == std::string_view::npos) throw InvalidArgument(cat("quality-evidence is \"", text, "\", must be a list of m, p, c, f, x"));
    if (out.find(c) == std::string::npos) out += c;
  }
  if (out.empty()) throw InvalidArgument(cat("quality-evidence is \"", text, "\", must be a list of m, p, c, f, x"));
  return out;
}

std::string spell_grades(std::string_view grades) {
  std::string text;
  for (const char c : grades) text += cat(text.empty() ? "" : ", ", static_cast<char>(std::tolower(static_cast<unsigned char>(c))));
  return text;
}

}  // namespace kvatlas::sweep

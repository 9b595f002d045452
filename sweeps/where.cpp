#include "sweeps/where.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <initializer_list>

#include "core/errors.hpp"
#include "models/registry.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/params.hpp"
#include "reference/registry.hpp"
#include "simulator/evaluator.hpp"

namespace kvatlas::sweep {

namespace {

using Type = Column::Type;
using Sense = Column::Sense;

// Descriptors of one slug may differ (imported from two files); a slug that stands for one of them only is the shorter name.
constexpr std::string_view kModelName = "CASE WHEN (SELECT count(*) FROM models o WHERE o.slug = m.slug) > 1 THEN m.identity ELSE m.slug END";

constexpr Column kColumns[] = {
    {"model", kModelName, Type::text, Sense::none, "m.identity"},
    {"gpu", "g.identity", Type::text},
    {"method", "t.slug", Type::text},
    {"recipe", "t.recipe", Type::text},
    {"family", "t.family", Type::text},
    {"deployable", "t.deployable", Type::integer},
    {"weights", "c.weights", Type::text},
    {"engine", "c.engine", Type::text},
    {"tp", "c.tp", Type::integer},
    {"plan", "c.plan", Type::text},
    {"context", "p.context", Type::integer, Sense::higher},
    {"batch", "p.batch", Type::integer, Sense::higher},
    {"step_ms", "p.step_s * 1000.0", Type::number, Sense::lower},
    {"low_ms", "p.low_s * 1000.0", Type::number, Sense::lower},
    {"high_ms", "p.high_s * 1000.0", Type::number, Sense::lower},
    {"attention_ms", "p.attention_s * 1000.0", Type::number, Sense::lower},
    {"matrix_ms", "p.matrix_s * 1000.0", Type::number, Sense::lower},
    {"method_ms", "p.method_s * 1000.0", Type::number, Sense::lower},
    {"other_ms", "p.other_s * 1000.0", Type::number, Sense::lower},
    {"tokens_per_s", "p.tokens_per_s", Type::number, Sense::higher},
    {"speedup", "p.speedup", Type::number, Sense::higher},
    {"throughput_gain", "p.throughput_gain", Type::number, Sense::higher},
    {"size_factor", "p.size_factor", Type::number, Sense::higher},
    {"cache_bytes", "p.cache_bytes", Type::number, Sense::lower},
    {"peak_bytes", "p.peak_bytes", Type::number, Sense::lower},
    {"cache_read_bytes", "p.cache_read_bytes", Type::number, Sense::lower},
    {"energy_j_per_token", "p.energy_j / p.batch", Type::number, Sense::lower},
    {"bound_by", "p.bound", Type::text},
    {"evidence", "p.evidence", Type::text},
    {"fits", "p.fits", Type::integer},
    {"provenance", "c.provenance", Type::text},
};

std::string_view trim(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

double parse_number(const Column& column, std::string_view text) {
  if (const auto size = parse_size(text)) return static_cast<double>(*size);
  double v = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size() || !std::isfinite(v))
    throw InvalidArgument(cat("where: ", column.name, " is compared with \"", text, "\", must be a number or a size like 32K"));
  return v;
}

Condition parse_condition(std::string_view text) {
  constexpr std::string_view kOps[] = {"!=", "<=", ">=", "=", "<", ">"};  // two characters first
  const std::size_t at = std::min(text.find_first_of("!<>="), text.size());
  const auto op = std::find_if(std::begin(kOps), std::end(kOps), [&](std::string_view o) { return text.substr(at).starts_with(o); });
  if (op == std::end(kOps))
    throw InvalidArgument(cat("where: \"", text, "\" is no condition, must be COLUMN OP VALUE with OP one of = != < <= > >="));
  Condition c{.column = &find_column("where", trim(text.substr(0, at))), .op = *op, .value = 0.0};
  std::string_view value = trim(text.substr(at + op->size()));
  if (value.size() >= 2 && value.front() == value.back() && (value.front() == '\'' || value.front() == '"')) value = value.substr(1, value.size() - 2);
  if (c.column->type == Type::text) {
    if (*op != "=" && *op != "!=") throw InvalidArgument(cat("where: ", c.column->name, " is a text, must be compared by = or !="));
    c.value = std::string(value);
  } else {
    c.value = parse_number(*c.column, value);
  }
  return c;
}

std::vector<std::string> texts(Database& db, std::string_view sql) {
  std::vector<std::string> out;
  Statement s(db, sql);
  while (s.step()) out.emplace_back(s.text(0));
  return out;
}

/// `value` when the store has it. Without a row there is nothing to compare with, and every answer is empty.
std::string known_to(const std::vector<std::string>& names, std::string_view kind, const std::string& value) {
  if (names.empty() || std::find(names.begin(), names.end(), value) != names.end()) return value;
  const std::vector<std::string_view> views(names.begin(), names.end());
  throw InvalidArgument(unknown_name(cat(kind, " in this store"), value, views));
}

/// The identity of a model that the store holds, by identity, slug, or alias.
std::string model_in(Database& db, const std::string& value) {
  const std::vector<std::string> identities = texts(db, "SELECT identity FROM models ORDER BY identity");
  std::string slug = value;
  for (const models::Model& m : models::all_models())
    if (m.slug == value || std::find(m.aliases.begin(), m.aliases.end(), value) != m.aliases.end()) slug = m.slug;
  for (const std::string& name : {value, slug})
    if (std::find(identities.begin(), identities.end(), name) != identities.end()) return name;
  std::vector<std::string> same;
  for (const std::string& identity : identities)
    if (identity.starts_with(slug + "#")) same.push_back(identity);
  if (same.size() == 1) return same[0];
  if (same.empty()) return known_to(texts(db, cat("SELECT DISTINCT ", kModelName, " FROM models m ORDER BY 1")), "model", value);
  std::string list;
  for (const std::string& s : same) list += cat(list.empty() ? "" : ", ", s);
  throw InvalidArgument(cat("\"", value, "\" stands for several models in this store, must be one of ", list));
}

template <class Enum>
std::string enumerator(std::string_view kind, const std::string& value, std::initializer_list<Enum> all) {
  std::vector<std::string_view> names;
  for (const Enum e : all) names.emplace_back(sim::name_of(e));
  if (std::find(names.begin(), names.end(), value) == names.end()) throw InvalidArgument(unknown_name(kind, value, names));
  return value;
}

/// A value as the store spells it.
std::string resolved(Database& db, std::string_view column, const std::string& value) {
  if (column == "model") return model_in(db, value);
  if (column == "gpu") {
    const std::vector<std::string> names = texts(db, "SELECT identity FROM gpus ORDER BY identity");
    if (std::find(names.begin(), names.end(), value) != names.end()) return value;
    return known_to(names, "GPU", sim::canonical(sim::parse_gpu(value)));
  }
  if (column == "method") return find_method(value).slug;
  if (column == "recipe") return Recipe::parse(value).canonical();
  if (column == "family") return known_to(texts(db, "SELECT DISTINCT family FROM methods ORDER BY 1"), "family", value);
  if (column == "weights") return known_to(texts(db, "SELECT DISTINCT weights FROM configurations ORDER BY 1"), "weight format", sim::name_of(sim::parse_weight_format(value)));
  if (column == "engine") return known_to(texts(db, "SELECT DISTINCT engine FROM configurations ORDER BY 1"), "engine", sim::find_engine(value).slug);
  if (column == "plan") return known_to({"ideal", "released"}, "plan", value);
  if (column == "provenance") return known_to(texts(db, "SELECT DISTINCT provenance FROM configurations ORDER BY 1"), "provenance", value);
  using B = sim::Bound;
  if (column == "bound_by") return enumerator("bound", value, {B::memory, B::unpack, B::tensor, B::vector, B::latency, B::link, B::memory_capacity});
  using E = sim::Evidence;
  if (column == "evidence") return enumerator("evidence", value, {E::fitted, E::extrapolated, E::other_gpu, E::uncalibrated_format});
  return value;
}

}  // namespace

std::string_view model_name_sql() { return kModelName; }

std::span<const Column> point_columns() { return kColumns; }

const Column& find_column(std::string_view what, std::string_view name) {
  std::vector<std::string_view> names;
  for (const Column& c : kColumns) {
    if (c.name == name) return c;
    names.push_back(c.name);
  }
  throw InvalidArgument(cat(what, ": ", unknown_name("column", name, names)));
}

std::string_view point_tables() {
  return "predictions p JOIN configurations c ON c.id = p.configuration JOIN models m ON m.id = c.model "
         "JOIN gpus g ON g.id = c.gpu JOIN methods t ON t.id = c.method";
}

std::vector<Condition> parse_where(std::string_view text) {
  std::vector<Condition> out;
  text = trim(text);
  if (text.empty()) return out;
  // Recipes and changed GPUs hold commas behind a colon: there a comma ends a condition only where a comparison of a known column follows.
  const auto starts_condition = [](std::string_view rest) {
    rest = trim(rest);
    const std::size_t end = std::min(rest.find_first_of("!<>= "), rest.size());
    return std::any_of(std::begin(kColumns), std::end(kColumns), [&](const Column& c) { return c.name == rest.substr(0, end); });
  };
  std::size_t start = 0;
  char quote = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (quote != 0 || text[i] == '"' || text[i] == '\'') {  // nothing ends inside quotes
      if (quote == 0) quote = text[i];
      else if (text[i] == quote) quote = 0;
      continue;
    }
    std::size_t width = 0;
    if (text[i] == ',' && (starts_condition(text.substr(i + 1)) || text.substr(start, i - start).find(':') == std::string_view::npos)) width = 1;
    if (text.substr(i).starts_with(" and ") || text.substr(i).starts_with(" AND ")) width = 5;
    if (width == 0) continue;
    out.push_back(parse_condition(trim(text.substr(start, i - start))));
    start = i + width;
    i = start - 1;
  }
  out.push_back(parse_condition(trim(text.substr(start))));
  return out;
}

void resolve_where(Database& db, std::vector<Condition>& conditions) {
  for (Condition& c : conditions) {
    auto* value = std::get_if<std::string>(&c.value);
    if (value == nullptr) continue;
    try {
      *value = resolved(db, c.column->name, *value);
    } catch (const InvalidArgument& e) {
      throw InvalidArgument(cat("where: ", e.what()));
    }
  }
}

std::string where_sql(const std::vector<Condition>& conditions) {
  std::string sql;
  for (const Condition& c : conditions) sql += cat(sql.empty() ? " WHERE " : " AND ", c.column->filter.empty() ? c.column->sql : c.column->filter, " ", c.op, " ?");
  return sql;
}

void bind_where(Statement& statement, const std::vector<Condition>& conditions) {
  int at = 0;
  for (const Condition& c : conditions) {
    ++at;
    if (const auto* text = std::get_if<std::string>(&c.value)) statement.bind(at, std::string_view(*text));
    else statement.bind(at, std::get<double>(c.value));
  }
}

}  // namespace kvatlas::sweep

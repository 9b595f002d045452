#include "sweeps/where.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/errors.hpp"
#include "reference/params.hpp"

namespace kvatlas::sweep {

namespace {

using Type = Column::Type;
using Sense = Column::Sense;

constexpr Column kColumns[] = {
    {"model", "m.slug", Type::text},
    {"gpu", "g.slug", Type::text},
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

}  // namespace

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
  // A recipe holds commas of its own, so a comma ends a condition only where a comparison of a known column follows.
  const auto starts_condition = [](std::string_view rest) {
    rest = trim(rest);
    const std::size_t end = std::min(rest.find_first_of("!<>= "), rest.size());
    return std::any_of(std::begin(kColumns), std::end(kColumns), [&](const Column& c) { return c.name == rest.substr(0, end); });
  };
  std::size_t start = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::size_t width = 0;
    if (text[i] == ',' && (starts_condition(text.substr(i + 1)) || text.substr(start, i - start).find("recipe") == std::string_view::npos)) width = 1;
    if (text.substr(i).starts_with(" and ") || text.substr(i).starts_with(" AND ")) width = 5;
    if (width == 0) continue;
    out.push_back(parse_condition(trim(text.substr(start, i - start))));
    start = i + width;
    i = start - 1;
  }
  out.push_back(parse_condition(trim(text.substr(start))));
  return out;
}

std::string where_sql(const std::vector<Condition>& conditions) {
  std::string sql;
  for (const Condition& c : conditions) sql += cat(sql.empty() ? " WHERE " : " AND ", c.column->sql, " ", c.op, " ?");
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

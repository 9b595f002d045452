// The restricted conditions of queries: "gpu=h100-sxm,context>=32K,fits=1" over columns that are known by name.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "sweeps/database.hpp"

namespace kvatlas::sweep {

/// A column that queries may name. `sql` is ours, never a user's text.
struct Column {
  std::string_view name;
  std::string_view sql;
  enum class Type : unsigned char { text, integer, number } type = Type::number;
  enum class Sense : unsigned char { none, lower, higher } better = Sense::none;  // which values are better
  std::string_view filter = {};  // what conditions compare, where that is not what is shown; ours too
};

/// Columns of a stored point, figures in the units of their names.
std::span<const Column> point_columns();

/// throws InvalidArgument with a suggestion
const Column& find_column(std::string_view what, std::string_view name);

/// The FROM clause that point columns refer to.
std::string_view point_tables();

struct Condition {
  const Column* column = nullptr;
  std::string_view op;  // "=", "!=", "<", "<=", ">", ">="
  std::variant<std::string, double> value;
};

/// SQL that names the model of the row `m`: its slug, or its identity where the store holds several models of that slug.
std::string_view model_name_sql();

/// Conditions separated by "," or " and ", all of which must hold. Sizes may be written 32K. A value may stand in quotes;
/// without them it may hold commas behind a colon, as recipes and changed GPUs do.
/// throws InvalidArgument with one sentence
std::vector<Condition> parse_where(std::string_view text);

/// Turns names into what the store holds: aliases into slugs, GPUs and recipes into their canonical texts.
/// throws InvalidArgument with a suggestion for a name that does not exist, or a model, GPU, engine ... that the store lacks
void resolve_where(Database& db, std::vector<Condition>& conditions);

/// " WHERE a = ? AND ..." with one parameter a condition, or nothing.
std::string where_sql(const std::vector<Condition>& conditions);

/// Binds the conditions' values to parameters 1, 2, ...; `conditions` must outlive the statement's steps.
void bind_where(Statement& statement, const std::vector<Condition>& conditions);

}  // namespace kvatlas::sweep

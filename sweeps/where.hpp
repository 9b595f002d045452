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

/// Conditions separated by "," or " and ", all of which must hold. Sizes may be written 32K.
/// throws InvalidArgument with one sentence
std::vector<Condition> parse_where(std::string_view text);

/// " WHERE a = ? AND ..." with one parameter a condition, or nothing.
std::string where_sql(const std::vector<Condition>& conditions);

/// Binds the conditions' values to parameters 1, 2, ...; `conditions` must outlive the statement's steps.
void bind_where(Statement& statement, const std::vector<Condition>& conditions);

}  // namespace kvatlas::sweep

#include "sweeps/pareto.hpp"

#include <algorithm>
#include <numeric>
#include <optional>

#include "core/errors.hpp"
#include "sweeps/store.hpp"
#include "sweeps/where.hpp"

namespace kvatlas::sweep {

using nlohmann::json;

namespace {

std::string point_select() {
  std::string columns = "p.key";
  for (const Column& c : point_columns()) columns += cat(", ", c.sql);
  return cat("SELECT ", columns, " FROM ", point_tables());
}

json point_of(const Statement& row) {
  json point{{"key", hex(row.key(0))}};
  int at = 0;
  for (const Column& c : point_columns()) {
    ++at;
    json& value = point[std::string(c.name)];
    if (row.is_null(at)) value = nullptr;
    else if (c.name == "fits" || c.name == "deployable") value = row.integer(at) != 0;
    else if (c.type == Column::Type::text) value = std::string(row.text(at));
    else if (c.type == Column::Type::integer) value = row.integer(at);
    else value = row.number(at);
  }
  point["energy_provenance"] = "assumed";  // energy is computed from an assumed power
  return point;
}

const Column& metric(const char* axis, const std::string& name) {
  const Column& c = find_column(axis, name);
  if (c.better != Column::Sense::none) return c;
  std::string allowed;
  for (const Column& m : point_columns())
    if (m.better != Column::Sense::none) allowed += cat(allowed.empty() ? "" : ", ", m.name);
  throw InvalidArgument(cat(axis, " is \"", name, "\", must be a figure of which more or less is better: ", allowed));
}

}  // namespace

std::vector<std::size_t> pareto_front(const std::vector<std::pair<double, double>>& points, bool x_higher, bool y_higher) {
  const auto x = [&](std::size_t i) { return x_higher ? -points[i].first : points[i].first; };
  const auto y = [&](std::size_t i) { return y_higher ? -points[i].second : points[i].second; };
  std::vector<std::size_t> order(points.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    if (x(a) != x(b)) return x(a) < x(b);
    return y(a) != y(b) ? y(a) < y(b) : a < b;
  });
  std::vector<std::size_t> front;
  for (std::size_t begin = 0; begin < order.size();) {  // runs of one x; only their best y can be on the front
    std::size_t end = begin;
    while (end < order.size() && x(order[end]) == x(order[begin])) ++end;
    const double best = y(order[begin]);
    if (front.empty() || best < y(front.back()))
      for (std::size_t i = begin; i < end && y(order[i]) == best; ++i) front.push_back(order[i]);
    begin = end;
  }
  std::sort(front.begin(), front.end());
  return front;
}

std::vector<json> pareto(const std::filesystem::path& store, const ParetoQuery& query) {
  const Column& x = metric("x", query.x);
  const Column& y = metric("y", query.y);
  std::vector<Condition> where = parse_where(query.where);
  if (std::none_of(where.begin(), where.end(), [](const Condition& c) { return c.column->name == "fits"; }))
    where.push_back({.column = &find_column("where", "fits"), .op = "=", .value = 1.0});
  std::optional<Database> db;
  open_for_reading(db, store);
  resolve_where(*db, where);
  std::vector<std::int64_t> ids;
  std::vector<std::pair<double, double>> values;
  {
    Statement s(*db, cat("SELECT p.id, ", x.sql, ", ", y.sql, " FROM ", point_tables(), where_sql(where)));
    bind_where(s, where);
    while (s.step())
      if (!s.is_null(1) && !s.is_null(2)) {
        ids.push_back(s.integer(0));
        values.emplace_back(s.number(1), s.number(2));
      }
  }
  const bool x_higher = x.better == Column::Sense::higher;
  std::vector<json> out;
  Statement s(*db, point_select() + " WHERE p.id = ?");
  for (const std::size_t i : pareto_front(values, x_higher, y.better == Column::Sense::higher)) {
    s.bind(1, ids[i]);
    s.step();
    out.push_back(point_of(s));
    out.back()["on_front"] = true;
    s.reset();
  }
  std::sort(out.begin(), out.end(), [&](const json& a, const json& b) {
    const auto xa = a.at(query.x).get<double>(), xb = b.at(query.x).get<double>();
    if (xa != xb) return x_higher ? xa > xb : xa < xb;
    return a.at("key").get<std::string>() < b.at("key").get<std::string>();
  });
  return out;
}

std::vector<json> select_points(const std::filesystem::path& store, const std::string& where, std::int64_t limit) {
  std::vector<Condition> conditions = parse_where(where);
  std::optional<Database> db;
  open_for_reading(db, store);
  resolve_where(*db, conditions);
  Statement s(*db, cat(point_select(), where_sql(conditions), " ORDER BY p.key LIMIT ", limit));
  bind_where(s, conditions);
  std::vector<json> out;
  while (s.step()) out.push_back(point_of(s));
  return out;
}

}  // namespace kvatlas::sweep

#include "sweeps/pareto.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>

#include "core/errors.hpp"
#include "sweeps/json.hpp"
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

enum class Kept : unsigned char { yes, no, unknown };

Quality quality_of_names(const ParetoQuery& query, std::string_view model, std::string_view recipe) {
  models::Model named;
  named.slug = model;
  return quality_of(query.evidence, named, Recipe::parse(recipe), query.quality_evidence);
}

/// Whether points of a model under a method keep the limit; each pair is looked up once.
class Limit {
 public:
  Limit(Database& db, const ParetoQuery& query) {
    Statement s(db, "SELECT DISTINCT c.model, c.method, m.slug, t.recipe FROM configurations c JOIN models m ON m.id = c.model JOIN methods t ON t.id = c.method");
    while (s.step()) {
      const std::optional<double> value = quality_of_names(query, s.text(2), s.text(3)).value;
      kept_[{s.integer(0), s.integer(1)}] = !value ? Kept::unknown : *value >= *query.min_quality ? Kept::yes : Kept::no;
    }
  }
  Kept of(std::int64_t model, std::int64_t method) const { return kept_.at({model, method}); }

 private:
  std::map<std::pair<std::int64_t, std::int64_t>, Kept> kept_;
};

/// Places of `points` that are on their front.
std::vector<std::size_t> front_among(const std::vector<std::pair<double, double>>& values, const std::vector<std::size_t>& among, bool x_higher, bool y_higher) {
  std::vector<std::pair<double, double>> chosen;
  for (const std::size_t i : among) chosen.push_back(values[i]);
  std::vector<std::size_t> out;
  for (const std::size_t i : pareto_front(chosen, x_higher, y_higher)) out.push_back(among[i]);
  return out;
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

std::vector<json> pareto(const std::filesystem::path& store, const ParetoQuery& given) {
  ParetoQuery query = given;
  query.quality_evidence = parse_grades(given.quality_evidence);
  if (query.min_quality && !(*query.min_quality >= 0 && *query.min_quality <= 1)) throw InvalidArgument(cat("min-quality is ", *query.min_quality, ", must be from 0 to 1 (the retained share)"));
  const Column& x = metric("x", query.x);
  const Column& y = metric("y", query.y);
  std::vector<Condition> where = parse_where(query.where);
  if (std::none_of(where.begin(), where.end(), [](const Condition& c) { return c.column->name == "fits"; }))
    where.push_back({.column = &find_column("where", "fits"), .op = "=", .value = 1.0});
  std::optional<Database> db;
  open_for_reading(db, store);
  resolve_where(*db, where);
  std::optional<Limit> limit;
  if (query.min_quality) limit.emplace(*db, query);
  std::vector<std::int64_t> ids;
  std::vector<std::pair<double, double>> values;
  std::vector<std::size_t> kept, possible;  // places in `values`: known to keep the limit, and those with the ones of unknown quality
  {
    Statement s(*db, cat("SELECT p.id, ", x.sql, ", ", y.sql, ", c.model, c.method FROM ", point_tables(), where_sql(where)));
    bind_where(s, where);
    while (s.step()) {
      if (s.is_null(1) || s.is_null(2)) continue;
      const Kept is = limit ? limit->of(s.integer(3), s.integer(4)) : Kept::yes;
      if (is == Kept::no) continue;
      if (is == Kept::yes) kept.push_back(values.size());
      possible.push_back(values.size());
      ids.push_back(s.integer(0));
      values.emplace_back(s.number(1), s.number(2));
    }
  }
  const bool x_higher = x.better == Column::Sense::higher, y_higher = y.better == Column::Sense::higher;
  std::vector<json> out;
  Statement s(*db, point_select() + " WHERE p.id = ?");
  const auto add = [&](std::size_t place, bool known) {
    s.bind(1, ids[place]);
    s.step();
    json point = point_of(s);
    s.reset();
    point["on_front"] = known ? json(true) : json(nullptr);
    if (query.evidence) point["quality"] = to_json(quality_of_names(query, point.at("model").get<std::string>(), point.at("recipe").get<std::string>()));
    out.push_back(std::move(point));
  };
  for (const std::size_t place : front_among(values, kept, x_higher, y_higher)) add(place, true);
  if (possible.size() > kept.size())
    for (const std::size_t place : front_among(values, possible, x_higher, y_higher))
      if (!std::binary_search(kept.begin(), kept.end(), place)) add(place, false);
  std::sort(out.begin(), out.end(), [&](const json& a, const json& b) {
    if (a.at("on_front").is_null() != b.at("on_front").is_null()) return b.at("on_front").is_null();
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

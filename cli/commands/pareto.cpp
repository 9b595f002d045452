// pareto: stored points that no other point beats in both of two figures.
#include "sweeps/pareto.hpp"

#include <ostream>

#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "sweeps/where.hpp"

namespace kvatlas::cli {

namespace {

std::string names_of_metrics() {
  std::string names;
  for (const sweep::Column& c : sweep::point_columns())
    if (c.better != sweep::Column::Sense::none) names += cat(names.empty() ? "" : ", ", c.name);
  return names;
}

std::string spell_cell(const Json& value) {
  if (value.is_null()) return "-";
  if (value.is_string()) return value.get<std::string>();
  return spell_number(value.get<double>());
}

const Usage& pareto_usage() {
  static const std::string note = [] {
    std::string text = "Metrics: ";
    for (const std::string& line : wrap(names_of_metrics(), kLineWidth - 10)) text += (text.size() > 9 ? "\n         " : "") + line;
    return text + "\nConditions join with a comma or \" and \"; columns also: model, gpu, method, recipe, family, weights, engine, tp, plan, fits.";
  }();
  static const Usage u{.command = "pareto", .positional = "",
                       .example = "kvatlas pareto --db atlas.sqlite --x size_factor --y tokens_per_s --where \"gpu=h100-sxm,context=32K\"",
                       .options = {Option::text("db", "FILE", "store").needed(), Option::text("x", "METRIC", "first metric").needed(),
                                   Option::text("y", "METRIC", "second metric").needed(),
                                   Option::list("where", "CONDITIONS", "only points for which these hold: gpu=h100-sxm,context>=32K; may be repeated")},
                       .note = note.c_str()};
  return u;
}

}  // namespace

int run_pareto(const Arguments& args, const Streams& io) {
  const auto parsed = parse(pareto_usage(), args, io);
  if (!parsed) return kDone;
  sweep::ParetoQuery query{.x = parsed->text("x"), .y = parsed->text("y"), .where = ""};
  for (const std::string& w : parsed->list("where")) query.where += cat(query.where.empty() ? "" : ",", w);
  const auto points = sweep::pareto(parsed->text("db"), query);
  if (parsed->json()) {
    Json list = Json::array();
    for (const auto& p : points) list.push_back(Json(p));
    print(io, list);
    return kDone;
  }
  Table table({{query.x, Align::right}, {query.y, Align::right}, {"model"}, {"gpu"}, {"context", Align::right}, {"batch", Align::right}, {"method"}});
  for (const Json p : points)
    table.add({spell_cell(p.at(query.x)), spell_cell(p.at(query.y)), p.at("model"), p.at("gpu"), spell_cell(p.at("context")), spell_cell(p.at("batch")), p.at("recipe")});
  table.print(io.out);
  io.out << "\n" << points.size() << " points on the front (computed; decode steps: prefill excluded)\n";
  return kDone;
}

}  // namespace kvatlas::cli

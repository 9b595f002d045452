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

std::string spell_retained(const Json& q) {
  if (q.at("value").is_null()) return "?";
  const std::string grade = q.at("grade").is_string() ? q.at("grade").get<std::string>() : "";
  return cat(spell_number(q.at("value").get<double>()), grade.empty() ? "" : " ", grade, q.at("proxy") == true ? " PROXY" : "");
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
                                   Option::list("where", "CONDITIONS", "only points for which these hold: gpu=h100-sxm,context>=32K; may be repeated"),
                                   Option::number("min-quality", 0, 1, "retained share of the plain cache's quality; points of unknown quality are told apart"),
                                   Option::text("quality-evidence", "GRADES", "accepted evidence: m measured, p published, c captured, f family, x proxy", "m,p")},
                       .note = note.c_str()};
  return u;
}

}  // namespace

int run_pareto(const Arguments& args, const Streams& io) {
  const auto parsed = parse(pareto_usage(), args, io);
  if (!parsed) return kDone;
  sweep::ParetoQuery query{.x = parsed->text("x"), .y = parsed->text("y"), .where = ""};
  for (const std::string& w : parsed->list("where")) query.where += cat(query.where.empty() ? "" : ",", w);
  if (parsed->has("min-quality")) query.min_quality = parsed->number("min-quality");
  query.quality_evidence = sweep::parse_grades(parsed->text("quality-evidence"));
  query.evidence = sweep::known_quality(parsed->text("db"));
  const auto points = sweep::pareto(parsed->text("db"), query);
  if (parsed->json()) {
    Json list = Json::array();
    for (const auto& p : points) list.push_back(Json(p));
    print(io, list);
    return kDone;
  }
  Table table({{query.x, Align::right}, {query.y, Align::right}, {"model"}, {"gpu"}, {"context", Align::right}, {"batch", Align::right}, {"quality"}, {"method"}});
  std::size_t unknown = 0;
  std::string settle;
  for (const Json p : points) {
    if (p.at("on_front").is_null() && unknown++ == 0) {
      table.heading("quality unknown; on the front if it were kept:");
      settle = p.at("quality").at("source").get<std::string>();
    }
    table.add({spell_cell(p.at(query.x)), spell_cell(p.at(query.y)), p.at("model"), p.at("gpu"), spell_cell(p.at("context")), spell_cell(p.at("batch")), spell_retained(p.at("quality")), p.at("recipe")});
  }
  table.print(io.out);
  io.out << "\n" << points.size() - unknown << " points on the front (computed; decode steps: prefill excluded)\n";
  if (unknown > 0) io.out << "quality of the first of the others: " << settle << "\n";
  return kDone;
}

}  // namespace kvatlas::cli

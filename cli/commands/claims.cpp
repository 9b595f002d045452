// claims: published figures of the methods beside ours for the same setup, with a computed verdict.
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "reference/registry.hpp"
#include "simulator/claims/judge.hpp"
#include "sweeps/evidence.hpp"

namespace kvatlas::cli {

namespace {

const Usage& claims_usage() {
  static const Usage u{.command = "claims", .positional = "", .example = "kvatlas claims --method quest --verdict not_reproduced",
                       .options = {Option::text("method", "M", "only claims about this method"),
                                   Option::choice("verdict", {"reproduced", "reproduced_if", "consistent", "not_reproduced", "undetermined"}, "only claims that met this verdict"),
                                   Option::text("db", "FILE", "store that keeps every row, in place of those it has; not with --method or --verdict")},
                       .note = "A figure is reproduced when ours lies within 15% of it at the setup as stated, reproduced_if when one\n"
                               "named change of reading is needed, consistent when it is a sum of bytes that repeats the paper's\n"
                               "formula. Verdicts are computed, never typed. With --method both sides are spelled out."};
  return u;
}

Json number_or_null(std::optional<double> value) { return value ? Json(*value) : Json(nullptr); }

/// Method, model, GPU and source of a claim: what the rows of one table of a paper share.
std::string heading(const Claim& c) {
  std::string text = c.method;
  if (!c.model.empty()) text += cat(", ", c.model);
  if (!c.gpu.empty()) text += cat(" on ", c.gpu);
  return cat(text, " [", c.source, "]");
}

std::string or_dash(const std::string& text) { return text.empty() ? "-" : text; }

}  // namespace

int run_claims(const Arguments& args, const Streams& io) {
  const auto parsed = parse(claims_usage(), args, io);
  if (!parsed) return kDone;
  if (parsed->has("db") && (parsed->has("method") || parsed->has("verdict")))
    throw UsageError(cat("--", parsed->has("method") ? "method" : "verdict", " shows a part of the claims, must be left out with --db, which replaces all that the store has"));
  const std::string only = parsed->has("method") ? find_method(parsed->text("method")).slug : "";
  const std::string wanted = parsed->has("verdict") ? parsed->text("verdict") : "";
  Json rows = Json::array();
  Table table({{"  claim"}, {"context", Align::right}, {"batch", Align::right}, {"published", Align::right}, {"ours", Align::right}, {"ratio", Align::right}, {"verdict"}});
  std::vector<sweep::ClaimRow> stored;
  std::string under;  // the heading whose rows follow
  std::vector<std::string> details;
  sim::VerdictShares shares;
  for (const Claim& c : all_claims()) {
    if (!only.empty() && c.method != only) continue;
    const sim::Judgement j = sim::judge(c, sim::all_setups());
    shares.add(j.verdict);
    if (!wanted.empty() && sim::name_of(j.verdict) != wanted) continue;
    const char* provenance = j.ours ? "computed" : "published";
    rows.push_back({{"method", c.method}, {"metric", c.metric}, {"published", published_value(c)}, {"unit", text_or_null(c.unit.c_str())},
                    {"ours", number_or_null(j.ours)}, {"ours_if", number_or_null(j.ours_if)}, {"change", text_or_null(j.change.c_str())},
                    {"change_source", text_or_null(j.change_source.c_str())}, {"ratio", number_or_null(j.ratio())}, {"provenance", provenance},
                    {"verdict", sim::name_of(j.verdict)}, {"why", j.why}, {"assumed", text_or_null(j.assumed.c_str())}, {"setup", c.conditions()}, {"source", c.source}});
    const Json published_number = published_value(c);
    stored.push_back({.method = c.method, .metric = c.metric, .unit = c.unit, .setup = c.conditions(), .verdict = sim::name_of(j.verdict), .why = j.why,
                      .source = c.source, .provenance = provenance, .change = j.change,
                      .published = published_number.is_number() ? std::optional(published_number.get<double>()) : std::nullopt, .ours = j.ours, .ours_if = j.ours_if});
    std::string ours = spell_number(j.ours);
    if (j.ours_if) ours += cat(" (", spell_number(j.ours_if), ")");
    std::string verdict = sim::name_of(j.verdict);
    if (!j.change.empty()) verdict += cat(": ", j.change);
    const std::string published = cat(c.published, c.unit == "x" ? "" : " ", c.unit);
    if (std::string text = heading(c); text != under) table.heading(under = std::move(text));
    table.add({cat("  ", c.metric), or_dash(c.context), or_dash(c.batch), published, ours, spell_number(j.ratio()), verdict});
    details.push_back(cat(c.metric, " ", published, " (published: ", c.source, "): ", c.conditions(), c.conditions().empty() ? "" : ". ",
                          j.ours ? "Ours (computed): " : "No figure of ours: ", j.why));
  }
  if (parsed->has("db")) sweep::store_claims(parsed->text("db"), stored);
  if (parsed->json()) {
    print(io, rows);
    return kDone;
  }
  table.print(io.out);
  io.out << "\npublished: by the source in brackets; ours: computed for the same setup (--method M tells how)\n\n";
  if (!only.empty())
    for (const std::string& text : details) {
      for (const std::string& line : wrap(text, kLineWidth)) io.out << line << "\n";
      io.out << "\n";
    }
  for (const std::string& line : wrap(sim::to_text(shares), kLineWidth)) io.out << line << "\n";
  return kDone;
}

}  // namespace kvatlas::cli

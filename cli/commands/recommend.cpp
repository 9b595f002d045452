// recommend: what to run for a workload, ranked by requests/s within its SLO; what is not advised, and why.
#include "sweeps/recommend.hpp"

#include <algorithm>
#include <fmt/core.h>
#include <ostream>
#include <sstream>

#include "cli/commands/command.hpp"
#include "cli/commands/support/deployment.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "cli/commands/support/warnings.hpp"
#include "models/registry.hpp"
#include "sweeps/json.hpp"
#include "sweeps/values.hpp"

namespace kvatlas::cli {

namespace {

const Usage& recommend_usage() {
  static const Usage u{
      .command = "recommend", .positional = "",
      .example = "kvatlas recommend --model llama-3.1-8b --gpu rtx-4090 --prompt 32K --output 512 --slo tpot_ms=50",
      .options = join({model_and_gpu_options(), workload_options(),
                       {Option::list("method", "M", "consider only these (lists and ranges allowed; may be repeated)"),
                        Option::number("memory-gib", 0.001, 1e6, "highest memory of one GPU, everything included"),
                        Option::number("min-quality", 0, 1, "retained share of the plain cache's quality"),
                        Option::text("quality-evidence", "GRADES", "accepted evidence: m measured, p published, c captured, f family, x proxy", "m,p"),
                        Option::text("db", "FILE", "store whose quality table is evidence beside published figures"),
                        Option::text("deployable", "ENGINE", "only methods that this engine offers today"),
                        Option::integer("top", 1, 1000, "rows of each table", "5"),
                        Option::flag("all", "every setting of a method, not only its best")},
                       deployment_options()}),
      .note = "Ranked by the closed form (req/s), then the best 20 by what the serving simulator makes of them\n"
              "(served/s: requests that keep the SLO, in steady state; the JSON has their latency tails)."};
  return u;
}

sweep::RecommendRequest request_of(const Parsed& p, const models::Model& model) {
  sweep::RecommendRequest r;
  r.deployment = read_deployment(p, model);
  r.workload = read_workload(p);
  for (const std::string& pattern : p.list("method"))
    for (const std::string& text : sweep::expand_recipe(pattern)) r.candidates.push_back(Recipe::parse(text));
  if (p.has("memory-gib")) r.memory_gib = p.number("memory-gib");
  if (p.has("min-quality")) r.min_quality = p.number("min-quality");
  r.quality_evidence = sweep::parse_grades(p.text("quality-evidence"));
  if (p.has("deployable")) r.deployable = p.text("deployable");
  r.evidence = sweep::known_quality(p.has("db") ? std::optional(p.text("db")) : std::nullopt);
  return r;
}

std::string spell_gain(const std::optional<double>& x) { return x ? spell_number(*x) + "x" : "-"; }

std::string spell_quality(const sweep::Quality& q) {
  if (!q.value) return "?";
  return cat(spell_number(*q.value), q.grade.empty() ? "" : " ", q.grade, q.grade == "X" ? " PROXY" : "");
}

/// The rows that are printed: the best setting of each method unless all are wanted.
std::vector<const sweep::Recommendation*> shown(const std::vector<sweep::Recommendation>& list, bool all, std::size_t top) {
  std::vector<const sweep::Recommendation*> out;
  for (const sweep::Recommendation& r : list)
    if ((all || r.best_of_method) && out.size() < top) out.push_back(&r);
  return out;
}

void add_rows(Table& table, const std::vector<const sweep::Recommendation*>& rows) {
  for (const sweep::Recommendation* r : rows)
    table.add({cat(r->rank), r->served ? spell_number(r->served->requests_per_s) : "-", spell_number(r->figures.requests_per_s),
               cat(spell_number(r->figures.low_requests_per_s), " - ", spell_number(r->figures.high_requests_per_s)), spell_gain(r->speedup),
               spell_gain(r->speedup_decode_only), spell_gain(r->figures.size_factor), spell_bytes(r->figures.peak_bytes),
               spell_quality(r->quality), r->recipe.canonical()});
}

/// One line of at most the line's width; the JSON has the whole sentence.
std::string clip(const std::string& text) { return text.size() <= kLineWidth ? text : text.substr(0, kLineWidth - 3) + "..."; }

constexpr std::size_t kLines = 24;  // a terminal's height holds question, answer, table and warnings

void print_text(const Streams& io, const Parsed& p, const sweep::RecommendRequest& request, const sweep::RecommendReport& report) {
  std::vector<std::string> lines;
  const auto say = [&](const std::string& label, const std::string& text, std::size_t most) {
    const std::vector<std::string> wrapped = wrap(text, kLineWidth - 10);
    for (std::size_t i = 0; i < wrapped.size() && i < most; ++i)
      lines.push_back(fmt::format("{:<10}{}{}", i == 0 ? label : "", wrapped[i], i + 1 == most && i + 1 < wrapped.size() ? " ..." : ""));
  };
  const sim::Deployment& d = request.deployment;
  say("question", cat("What should ", d.model->name, " run on ", d.tp * d.pp * d.dp > 1 ? cat(d.tp * d.pp * d.dp, " x ") : "one ", d.gpu.name, " for ",
                      spell(request.workload), "? (weights ", sim::name_of(d.weights), ")"), 2);
  const auto top = static_cast<std::size_t>(p.integer("top"));
  const bool short_form = top <= 5;
  const auto in_engines = shown(report.deployable, p.has("all"), top), research = shown(report.research, p.has("all"), short_form ? std::min<std::size_t>(top, 3) : top);
  const sweep::Recommendation* first = report.advised ? &*report.advised : !research.empty() ? research[0] : nullptr;
  if (first == nullptr) {
    say("answer", cat("Nothing serves this workload. ", report.binds), 3);
  } else {
    std::string engines;
    for (const std::string& e : first->deployable) engines += cat(engines.empty() ? "" : ", ", e);
    say("answer", cat(first->recipe.canonical(), " (", engines.empty() ? "research only" : engines, "): ", spell_number(first->figures.requests_per_s),
                      " requests/s", first->served ? cat(" (", spell_number(first->served->requests_per_s), " when served one by one)") : "", ", 80% interval ", spell_number(first->figures.low_requests_per_s), " to ", spell_number(first->figures.high_requests_per_s),
                      "; TTFT ", spell_number(1e3 * first->figures.ttft_s), " ms, TPOT ", spell_number(1e3 * first->figures.tpot_s), " ms, ",
                      first->figures.concurrency, " in flight, cache ", spell_bytes(first->figures.cache_bytes), "; workload ", spell_gain(first->speedup),
                      ", decode only ", spell_gain(first->speedup_decode_only)), 3);
    say("why", cat(report.advised ? report.advised_why : "no method that an engine offers serves it", "; ", first->why), 2);
  }
  const auto percent = [](double share) { return fmt::format("{:.0f} %", 100 * share); };
  if (first != nullptr && first->chance)
    say("sure?", cat("fastest of ", first->chance->among, " in ", percent(first->chance->best), " of draws, gives away ", percent(first->chance->regret), " on average",
                     report.settle ? cat("; the safest ", percent(report.settle->regret), ", settled ", percent(report.settle->regret_measured)) : ""), 1);
  if (first != nullptr && report.settle) say("settle", report.settle->command, 2);
  if (!report.binds.empty() && first != nullptr) say("plain", report.binds, 1);
  if (first != nullptr) {
    std::ostringstream rows;
    Table table({{"#", Align::right}, {"served/s", Align::right}, {"req/s", Align::right}, {"80% interval", Align::right}, {"workload", Align::right}, {"decode", Align::right},
                 {"size", Align::right}, {"peak", Align::right}, {"quality"}, {in_engines.empty() ? "research, in no engine today" : "in engines today"}});
    add_rows(table, in_engines);
    if (!in_engines.empty() && !research.empty()) table.heading("research, in no engine today:");
    add_rows(table, research);
    table.print(rows);
    std::istringstream text(rows.str());
    for (std::string line; std::getline(text, line);) lines.push_back(line);
  }
  std::vector<std::string> warnings;
  const auto unknown = [](const sweep::Recommendation& r) { return !r.quality.value; };
  const auto unjudged = std::count_if(report.deployable.begin(), report.deployable.end(), unknown) + std::count_if(report.research.begin(), report.research.end(), unknown);
  if (unjudged > 0)
    warnings.push_back(cat("warning: quality of ", unjudged, " settings is unknown and not judged; --min-quality judges, --db adds figures"));
  if (first != nullptr)
    warnings.push_back(cat("warning: figures are computed, their intervals provisional (", sim::name_of(first->figures.evidence), ")",
                           report.uncertain.empty() ? "" : cat("; ", report.uncertain.size(), " pairs among the first overlap: their order is not settled")));
  const std::size_t taken = lines.size() + warnings.size();
  const std::size_t room = !short_form ? report.excluded.size() : taken < kLines ? kLines - taken : 1;
  // Whole methods before single settings of methods that are recommended at others.
  std::vector<sweep::Exclusion> excluded = report.excluded;
  std::stable_partition(excluded.begin(), excluded.end(), [](const sweep::Exclusion& e) { return e.method.find(':') == std::string::npos; });
  std::size_t left = excluded.size();
  for (const sweep::Exclusion& e : excluded) {
    // The last free line counts what is not shown.
    if (report.excluded.size() - left + 1 == room && left > 1) break;
    lines.push_back(clip(cat("not advised: ", e.method, ": ", e.why)));
    --left;
  }
  if (left > 0) lines.push_back(cat("not advised: ", left, " more (kvatlas recommend ... --json names every one)"));
  lines.insert(lines.end(), warnings.begin(), warnings.end());
  for (const std::string& line : lines) io.out << line << "\n";
}

}  // namespace

int run_recommend(const Arguments& args, const Streams& io) {
  const auto parsed = parse(recommend_usage(), args, io);
  if (!parsed) return kDone;
  const models::Model model = models::load_model(parsed->text("model"));
  const sweep::RecommendRequest request = request_of(*parsed, model);
  const sweep::RecommendReport report = sweep::recommend(request);
  Warnings warnings;
  warnings.add_model(model);
  warnings.add_slo(*parsed);
  warnings.print(io, "recommend");
  if (parsed->json()) {
    Json document = sweep::to_json(report);
    document["question"] = {{"model", model.slug}, {"gpu", sim::canonical(request.deployment.gpu)}, {"weights", sim::name_of(request.deployment.weights)},
                            {"workload", Json(sweep::to_json(request.workload))}, {"workload_text", spell(request.workload)}};
    document["warnings"] = warnings.json();
    print(io, document);
  } else {
    print_text(io, *parsed, request, report);
  }
  return kDone;
}

}  // namespace kvatlas::cli

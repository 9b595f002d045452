#include "cli/commands/support/quality_tables.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <ostream>

#include "cli/commands/support/evaluation.hpp"
#include "cli/commands/support/measuring.hpp"
#include "cli/commands/support/same_model.hpp"
#include "cli/commands/support/source_tree.hpp"
#include "cli/commands/support/table.hpp"
#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "models/registry.hpp"
#include "sweeps/quality_plan.hpp"
#include "sweeps/quality_table.hpp"

namespace kvatlas::cli {

namespace {

constexpr const char* kEmbeddedModel = "embedded";

/// A figure of a JSON row by the name that tables give it.
std::optional<double> figure_of(const Json& row, std::string_view name) {
  const auto number = [](const Json& value) { return value.is_number() ? std::optional(value.get<double>()) : std::nullopt; };
  struct Inside {
    std::string_view name;
    const char *group, *key;
    int side;  // of an interval; -1: a number
  };
  constexpr Inside kInside[] = {{"perplexity_low", "ci95", "perplexity", 0},      {"perplexity_high", "ci95", "perplexity", 1},
                                {"delta_low", "ci95", "delta_perplexity", 0},     {"delta_high", "ci95", "delta_perplexity", 1},
                                {"delta_detectable", "min_detectable", "delta_perplexity", -1},
                                {"kl_low", "ci95", "kl_mean", 0},                 {"kl_high", "ci95", "kl_mean", 1},
                                {"kl_detectable", "min_detectable", "kl_mean", -1},
                                {"top1_low", "ci95", "top1_agreement", 0},        {"top1_high", "ci95", "top1_agreement", 1},
                                {"top1_detectable", "min_detectable", "top1_agreement", -1}};
  for (const Inside& i : kInside) {
    if (i.name != name) continue;
    if (!row.at(i.group).is_object()) return std::nullopt;
    const Json& value = row.at(i.group).at(i.key);
    if (i.side < 0) return number(value);
    return value.is_array() ? number(value.at(static_cast<std::size_t>(i.side))) : std::nullopt;
  }
  return number(row.at(std::string(name)));
}

sweep::QualityTableRow table_row(const Json& row) {
  sweep::QualityTableRow r{.context = row.at("context").get<std::int64_t>(), .recipe = row.at("asked").get<std::string>(), .ran = {}, .grade = row.at("grade").get<std::string>(),
                           .verdict = {}, .version = KVATLAS_VERSION, .failure = {}};
  if (row.at("method") != row.at("asked")) r.ran = row.at("method").get<std::string>();
  if (row.at("failure").is_string()) {
    r.failure = row.at("failure").get<std::string>();
    return r;
  }
  r.verdict = row.at("verdict").get<std::string>();
  for (std::size_t i = 0; i < sweep::kQualityFigures.size(); ++i) r.figures[i] = figure_of(row, sweep::kQualityFigures[i]);
  r.stored_bytes = row.at("stored_bytes").get<std::int64_t>();
  r.dense_bytes = row.at("dense_bytes").get<std::int64_t>();
  return r;
}

/// Whether --method asks for a recipe: by its method, or whole.
bool asked_for(const std::vector<std::string>& methods, const Recipe& recipe) {
  return methods.empty() || std::ranges::any_of(methods, [&](const std::string& m) {
           return m.find(':') == std::string::npos ? recipe.main().slug == m : recipe.canonical() == Recipe::parse(m).canonical();
         });
}

std::vector<std::string> methods_of(const Parsed& p) {
  std::vector<std::string> methods = p.list("method");
  for (const std::string& m : methods) (void)Recipe::parse(m);  // a name that nobody has is a mistake, not an empty answer
  return methods;
}

/// The table so far, or a new one; it must be of these weights, this text and this plan.
sweep::QualityTable table_so_far(const std::string& file, const sweep::QualityTable& fresh) {
  if (!std::filesystem::exists(file)) return fresh;
  std::vector<sweep::QualityTable> found;
  try {
    found = sweep::read_quality_tables(io::read_text(file), file);
  } catch (const InvalidArgument& e) {
    throw IoError(e.what());
  }
  if (found.size() != 1) throw IoError(cat(file, " holds ", found.size(), " quality tables, must be one to go on with"));
  if (const auto what = sweep::differs_in(found[0], fresh)) throw IoError(cat(file, ": ", *what, "; rows of both cannot stand together, write to another file"));
  return found[0];
}

EvaluationRun run_of(const sweep::QualityPlan& plan, const Reading& reading) {
  EvaluationRun run;
  run.quality_model = reading.model.name;
  run.text_hash = models::text_hash(reading.text);
  run.protocol = plan.protocol;
  run.grade = "M";
  run.seed = plan.seed;
  run.dtype = plan.dtype;
  run.trained_context = reading.model.transformer.model().trained_context;
  run.scored = plan.scored;
  run.windows = plan.windows;
  run.chunk = plan.chunk;
  return run;
}

std::string spell_short(const std::optional<double>& x) { return x ? fmt::format("{:.3g}", *x) : std::string("-"); }

std::string spell_setting(const sweep::QualityTableRow& r) {
  const std::string size = *r.stored_bytes > 0 ? fmt::format("{:.2f}x", static_cast<double>(*r.dense_bytes) / static_cast<double>(*r.stored_bytes)) : std::string("-");
  return cat(size, " ", spell_short(r.figure("kl_mean")), " ", r.verdict);
}

}  // namespace

Arguments with_embedded_files(const Arguments& args) {
  const auto given = [&](const std::string& option) {
    return std::ranges::any_of(args, [&](const std::string& a) { return a == option || a.starts_with(option + "="); });
  };
  bool embedded = false;
  for (std::size_t i = 0; i < args.size(); ++i) embedded = embedded || args[i] == cat("--model=", kEmbeddedModel) || (i > 0 && args[i - 1] == "--model" && args[i] == kEmbeddedModel);
  if (!embedded || given("--weights") || given("--capture") || given("--help") || given("--shipped")) return args;
  const std::filesystem::path root = source_tree(), weights = root / "models" / "embedded" / "model.safetensors";
  if (root.empty()) throw UsageError("--model embedded needs --weights outside of the source tree that the program was built in");
  if (!std::filesystem::exists(weights)) throw IoError(cat(weights.string(), " is not there: the embedded model's weights have not joined the tree; see models/embedded/README.md"));
  Arguments out = args;
  out.insert(out.end(), {"--weights", weights.string()});
  if (!given("--text")) out.insert(out.end(), {"--text", (root / "models" / "evaluation" / "tables" / "text.txt").string()});
  return out;
}

std::optional<models::Model> model_named(const Parsed& p) {
  if (!p.has("model")) return std::nullopt;
  if (p.text("model") != kEmbeddedModel) return models::load_model(p.text("model"));
  if (!p.has("weights")) throw UsageError("--model embedded goes with weights");
  models::Model m = models::load_model((std::filesystem::path(p.text("weights")).parent_path() / "config.json").string());
  m.slug = kEmbeddedModel;
  return m;
}

int measure_table(const Parsed& p, const Streams& io) {
  for (const char* needed : {"weights", "text", "model", "out"})
    if (!p.has(needed)) throw UsageError(cat("--", needed, " is missing: --table needs weights, their text, the model's name and a file to write"));
  for (const char* option : {"capture", "context", "protocol", "scored", "windows", "chunk", "tasks", "trials", "probes", "trained", "against", "seed", "dtype"})
    if (p.given(option)) throw UsageError(cat("--", option, " says nothing beside --table, whose document says it"));
  sweep::QualityPlan plan;
  try {
    plan = sweep::read_quality_plan(io::read_text(p.text("table")), p.text("table"));
  } catch (const InvalidArgument& e) {
    throw IoError(e.what());
  }
  const std::vector<std::string> methods = methods_of(p);
  const std::string file = p.text("out");
  const models::Model record = *model_named(p);
  const Reading reading = load_reading(p, io, "evaluate");
  if (const auto why = why_not_same(record, reading.model.transformer.model())) throw IoError(cat(p.text("weights"), ": ", *why));
  EvaluationRun run = run_of(plan, reading);
  const sweep::QualityTable fresh{.model = record.slug, .quality_model = run.quality_model, .weights_hash = models::text_hash(io::read_text(p.text("weights"))), .text_hash = run.text_hash,
                                  .protocol = run.protocol, .dtype = name_of(run.dtype), .scored = run.scored, .windows = run.windows, .chunk = run.chunk, .seed = run.seed, .rows = {}};
  sweep::QualityTable table = table_so_far(file, fresh);
  const auto progress = progress_on(io);
  const auto started = std::chrono::steady_clock::now();
  const auto seconds_since = [](std::chrono::steady_clock::time_point t) { return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count(); };
  std::int64_t measured = 0, wanted = 0;
  for (const std::int64_t context : plan.contexts) {
    std::vector<Recipe> missing;
    for (Recipe& r : plan.recipes(context)) {
      if (r.canonical() != "full" && !asked_for(methods, r)) continue;
      ++wanted;
      if (table.find(context, r.canonical()) == nullptr) missing.push_back(std::move(r));
    }
    // Where `full` alone is missing it is measured, else it comes along with every batch.
    run.context = context;
    for (std::size_t first = 0; first < missing.size(); first += static_cast<std::size_t>(plan.batch)) {
      const std::size_t count = std::min(missing.size() - first, static_cast<std::size_t>(plan.batch));
      const std::vector<Recipe> batch(missing.begin() + static_cast<std::ptrdiff_t>(first), missing.begin() + static_cast<std::ptrdiff_t>(first + count));
      const auto batch_started = std::chrono::steady_clock::now();
      TensorMap trained;
      for (const Json& row : measure(reading, batch, trained, run, {}, progress)) table.put(table_row(row));
      io::write_text(file, sweep::write_quality_table(table));
      measured += static_cast<std::int64_t>(count);
      io.err << "context " << context << ": " << batch.front().canonical() << " to " << batch.back().canonical() << ", " << count << " rows in " << fmt::format("{:.0f}", seconds_since(batch_started))
             << " s; " << missing.size() - first - count << " left\n";
    }
  }
  if (p.has("db")) sweep::store_quality(p.text("db"), sweep::quality_rows(table));
  const auto failed = std::ranges::count_if(table.rows, [](const sweep::QualityTableRow& r) { return !r.failure.empty(); });
  if (p.json())
    print(io, {{"out", file}, {"rows", table.rows.size()}, {"wanted", wanted}, {"measured", measured}, {"refused", failed}, {"seconds", seconds_since(started)}});
  else
    io.out << file << ": " << table.rows.size() << " rows of " << table.model << ", " << measured << " of them new, " << failed << " refused with a sentence\n";
  return kDone;
}

int show_shipped_quality(const Parsed& p, const Streams& io) {
  for (const char* option : {"weights", "text", "capture", "protocol", "scored", "windows", "chunk", "tasks", "trials", "probes", "trained", "against", "seed", "dtype", "model", "table", "out", "threads"})
    if (p.given(option)) throw UsageError(cat("--", option, " says nothing beside --shipped, which measures nothing"));
  const std::vector<sweep::QualityTable>& all = sweep::shipped_quality_tables();
  std::vector<std::string_view> names;
  for (const sweep::QualityTable& t : all) names.push_back(t.model);
  const auto found = std::ranges::find(names, p.text("shipped"));
  if (found == names.end()) {
    if (names.empty()) throw UsageError("--shipped: this program was built without a quality table");
    throw UsageError(cat("--shipped: ", unknown_name("model", p.text("shipped"), names)));
  }
  const sweep::QualityTable& table = all[static_cast<std::size_t>(found - names.begin())];
  if (p.has("db")) sweep::store_quality(p.text("db"), sweep::quality_rows(table));
  const std::vector<std::string> methods = methods_of(p);
  std::vector<const sweep::QualityTableRow*> rows;
  for (const sweep::QualityTableRow& r : table.rows)
    if ((!p.given("context") || r.context == p.integer("context")) && asked_for(methods, Recipe::parse(r.recipe))) rows.push_back(&r);
  if (p.json()) {
    Json list = Json::array();
    for (const sweep::QualityTableRow* r : rows) {
      Json row{{"method", r->ran.empty() ? r->recipe : r->ran}, {"asked", r->recipe}, {"quality_model", table.quality_model}, {"context", r->context}, {"protocol", table.protocol},
               {"seed", table.seed}, {"text_hash", table.text_hash}, {"weights_hash", table.weights_hash}, {"version", r->version}, {"grade", r->grade}, {"provenance", "measured"},
               {"verdict", r->verdict.empty() ? Json(nullptr) : Json(r->verdict)}, {"failure", r->failure.empty() ? Json(nullptr) : Json(r->failure)},
               {"stored_bytes", r->stored_bytes ? Json(*r->stored_bytes) : Json(nullptr)}, {"dense_bytes", r->dense_bytes ? Json(*r->dense_bytes) : Json(nullptr)}};
      for (std::size_t i = 0; i < sweep::kQualityFigures.size(); ++i) row[std::string(sweep::kQualityFigures[i])] = r->figures[i] ? Json(*r->figures[i]) : Json(nullptr);
      list.push_back(std::move(row));
    }
    print(io, list);
    return kDone;
  }
  if (table.model == kEmbeddedModel) io.out << "mechanism check on the embedded model (not evidence for yours)\n";
  else io.out << "quality of " << table.model << ", grade M: no evidence of another model\n";
  io.out << "measured: " << table.quality_model << ", protocol " << table.protocol << ", " << table.scored * table.windows << " scored tokens, text " << table.text_hash
         << "; size factor, mean KL in nats, verdict\n";
  Table text({{"context", Align::right}, {"method"}, {"largest cache"}, {"middle"}, {"smallest"}});
  for (std::size_t i = 0; i < rows.size();) {
    std::vector<const sweep::QualityTableRow*> same;
    const std::string slug = Recipe::parse(rows[i]->recipe).main().slug;
    const std::int64_t context = rows[i]->context;
    for (; i < rows.size() && rows[i]->context == context && Recipe::parse(rows[i]->recipe).main().slug == slug; ++i)
      if (rows[i]->failure.empty() && rows[i]->stored_bytes && rows[i]->dense_bytes) same.push_back(rows[i]);
    if (same.empty() || slug == "full") continue;
    std::ranges::stable_sort(same, {}, [](const sweep::QualityTableRow* r) { return -*r->stored_bytes; });
    std::vector<std::string> cells{cat(context), slug};
    for (std::size_t s = 0; s < 3; ++s) cells.push_back(s < same.size() ? spell_setting(*same[s]) : "-");
    text.add(std::move(cells));
  }
  text.print(io.out);
  return kDone;
}

}  // namespace kvatlas::cli

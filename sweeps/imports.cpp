#include "sweeps/imports.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "models/registry.hpp"
#include "reference/compose/recipe.hpp"
#include "simulator/gpu.hpp"
#include "sweeps/database.hpp"
#include "sweeps/schema.hpp"

namespace kvatlas::sweep {

using nlohmann::json;

namespace {

using Reader = std::vector<reading::Figure> (*)(const std::string&, const std::filesystem::path&);
constexpr std::string_view kImportKinds[] = {"kvpress-results", "lm-eval", "vllm-bench", "llama-bench", "aiconfigurator"};
constexpr Reader kReaders[] = {reading::read_kvpress, reading::read_lm_eval, reading::read_vllm_bench, reading::read_llama_bench, reading::read_aiconfigurator};
static_assert(std::size(kImportKinds) == std::size(kReaders));

/// "meta-llama/Meta-Llama-3.1-8B-Instruct" is our alias "Llama-3.1-8B-Instruct": the publisher, and the prefix that it dropped later.
std::optional<std::string> match_model(const std::string& name) {
  std::string last = name.substr(name.find_last_of("/\\") + 1);
  for (const char* prefix : {"", "Meta-", "meta-"}) {
    if (!last.starts_with(prefix)) continue;
    try {
      return models::find_model(last.substr(std::string_view(prefix).size())).slug;
    } catch (const InvalidArgument&) {
      continue;
    }
  }
  return std::nullopt;
}

/// "NVIDIA GeForce RTX 4090", "h100_sxm": words of the maker leave, separators are dashes.
std::optional<std::string> match_gpu(const std::string& name) {
  std::string text = name;
  for (const char* word : {"NVIDIA ", "GeForce ", "Tesla "})
    if (const std::size_t at = text.find(word); at != std::string::npos) text.erase(at, std::string_view(word).size());
  std::replace(text.begin(), text.end(), ' ', '-');
  std::replace(text.begin(), text.end(), '_', '-');
  try {
    return sim::canonical(sim::find_gpu(text));
  } catch (const InvalidArgument&) {
    return std::nullopt;
  }
}

class Matcher {
 public:
  explicit Matcher(std::vector<Unmatched>& list) : list_(&list) {}
  void miss(const char* field, const std::string& name, const std::string& why) {
    for (Unmatched& u : *list_)
      if (u.field == field && u.name == name) {
        ++u.rows;
        return;
      }
    list_->push_back({.field = field, .name = name, .why = why, .rows = 1});
  }

 private:
  std::vector<Unmatched>* list_;
};

}  // namespace

std::span<const std::string_view> import_kinds() { return kImportKinds; }

ImportReport read_results(std::string_view kind, const std::filesystem::path& file, const ImportHints& hints) {
  const auto* known = std::ranges::find(kImportKinds, kind);
  if (known == std::end(kImportKinds)) throw InvalidArgument(unknown_name("kind of results", kind, kImportKinds));
  ImportHints stated;
  if (hints.model) stated.model = models::find_model(*hints.model).slug;
  if (hints.gpu) stated.gpu = sim::canonical(sim::parse_gpu(*hints.gpu));
  if (hints.method) stated.method = Recipe::parse(*hints.method).canonical();

  const std::vector<std::byte> bytes = io::read_file(file.string());
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::error_code unknown;
  const std::filesystem::path place = std::filesystem::canonical(file, unknown);
  ImportReport report{.tool = std::string(kind), .file = (unknown ? std::filesystem::absolute(file) : place).string(), .rows = {}, .unmatched = {}};
  Matcher matcher(report.unmatched);
  for (reading::Figure& f : kReaders[known - std::begin(kImportKinds)](text, file)) {
    if (!std::isfinite(f.value)) {
      matcher.miss("metric", f.metric, "the value is not a finite number, the row is left out");
      continue;
    }
    ImportedRow row{.model = {}, .gpu = {}, .recipe = {}, .metric = std::move(f.metric), .value = f.value, .setup = std::move(f.setup)};
    if (stated.model) row.model = stated.model;
    else if (f.model.empty()) matcher.miss("model", "", "the file does not name a model; state it");
    else if (!(row.model = match_model(f.model))) matcher.miss("model", f.model, "no shipped model has this name; state which it is");
    if (stated.gpu) row.gpu = stated.gpu;
    else if (f.gpu.empty()) matcher.miss("gpu", "", "the file does not name a GPU; state it");
    else if (!(row.gpu = match_gpu(f.gpu))) matcher.miss("gpu", f.gpu, "no GPU has this name or alias; state which it is");
    if (stated.method) {
      row.recipe = stated.method;
    } else if (!f.method_why.empty()) {
      matcher.miss("method", f.method, f.method_why);
    } else if (f.method.empty()) {
      matcher.miss("method", "", "the file does not say how the cache was stored; state it");
    } else {
      try {
        row.recipe = Recipe::parse(f.method).canonical();
      } catch (const InvalidArgument& e) {
        matcher.miss("method", f.method, e.what());
      }
    }
    report.rows.push_back(std::move(row));
  }
  if (report.rows.empty()) throw IoError(cat(file.string(), ": no figure found, must be a result file of ", kind));
  return report;
}

void store_results(const std::filesystem::path& store, const ImportReport& report) {
  Database db(store, Database::Mode::create);
  prepare_schema(db);
  Transaction transaction(db);
  {
    Statement remove(db, "DELETE FROM imported WHERE tool = ? AND file = ?");
    remove.bind(1, report.tool).bind(2, report.file).run();
    Statement insert(db, "INSERT INTO imported(tool, file, model, recipe, metric, value, setup, provenance) VALUES(?, ?, ?, ?, ?, ?, ?, 'imported')");
    for (const ImportedRow& r : report.rows) {
      json setup = r.setup;
      setup["gpu"] = r.gpu ? json(*r.gpu) : json(nullptr);
      const std::string text = setup.dump(-1, ' ', false, json::error_handler_t::replace);
      insert.bind(1, report.tool).bind(2, report.file);
      r.model ? insert.bind(3, std::string_view(*r.model)) : insert.bind_null(3);
      r.recipe ? insert.bind(4, std::string_view(*r.recipe)) : insert.bind_null(4);
      insert.bind(5, r.metric).bind(6, r.value).bind(7, text).run();
    }
  }
  transaction.commit();
}

json to_json(const ImportReport& report) {
  const auto maybe_text = [](const std::optional<std::string>& t) { return t ? json(*t) : json(nullptr); };
  json unmatched = json::array(), rows = json::array();
  for (const Unmatched& u : report.unmatched) unmatched.push_back({{"field", u.field}, {"name", u.name.empty() ? json(nullptr) : json(u.name)}, {"why", u.why}, {"rows", u.rows}});
  for (const ImportedRow& r : report.rows)
    rows.push_back({{"model", maybe_text(r.model)}, {"gpu", maybe_text(r.gpu)}, {"recipe", maybe_text(r.recipe)}, {"metric", r.metric}, {"value", r.value}, {"setup", r.setup},
                    {"provenance", "imported"}});
  return {{"tool", report.tool}, {"file", report.file}, {"rows", report.rows.size()}, {"unmatched", unmatched}, {"imported", rows}, {"provenance", "imported"}};
}

}  // namespace kvatlas::sweep

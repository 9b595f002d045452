// Results of other tools as rows with provenance `imported`, matched to our models, GPUs and methods by name; what has no match is
// listed with the reason, never guessed.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::sweep {

/// What the user states because the file does not; checked like any other name.
struct ImportHints {
  std::optional<std::string> model, gpu, method;
};

struct ImportedRow {
  std::optional<std::string> model;   // slug
  std::optional<std::string> gpu;     // canonical text
  std::optional<std::string> recipe;  // canonical
  std::string metric;                 // the unit in its name
  double value = 0;
  nlohmann::json setup;               // what the figure was measured on, in the tool's own words
};

/// A name or a setting of the file that is none of ours; its rows are kept with that field empty.
struct Unmatched {
  std::string field;    // model, gpu, method, metric
  std::string name;     // as the file spells it
  std::string why;
  std::int64_t rows = 0;
};

struct ImportReport {
  std::string tool, file;  // file: absolute, every link followed, so that two folders' metrics.json are two files
  std::vector<ImportedRow> rows;
  std::vector<Unmatched> unmatched;
};

/// kvpress-results, lm-eval, vllm-bench, llama-bench, aiconfigurator.
std::span<const std::string_view> import_kinds();

/// Reads a result file.
///   kvpress-results  metrics.json of an evaluation; its config.yaml, or else the name of its folder, says of what
///   lm-eval          results_*.json
///   vllm-bench       JSON of `vllm bench serve --save-result`
///   llama-bench      JSON, JSON lines or CSV (`-o json|jsonl|csv`)
///   aiconfigurator   CSV of configurations
/// throws InvalidArgument for the kind and the hints; IoError for a file that is not of that kind
ImportReport read_results(std::string_view kind, const std::filesystem::path& file, const ImportHints& hints = {});

/// Stores the rows in place of what an earlier import of the same tool and file left. Makes the store when there is none.
void store_results(const std::filesystem::path& store, const ImportReport& report);

/// {tool, file, rows, unmatched:[{field, name, why, rows}], provenance}; the rows themselves under `imported`
nlohmann::json to_json(const ImportReport& report);

namespace reading {

/// One figure of a file before its names are matched. Empty names are "the file does not say".
struct Figure {
  std::string model, gpu, method;
  std::string method_why{};  // why the method has no spelling of ours, where the reader knows it has none
  std::string metric;
  double value = 0;
  nlohmann::json setup;
};

std::vector<Figure> read_kvpress(const std::string& text, const std::filesystem::path& file);
std::vector<Figure> read_lm_eval(const std::string& text, const std::filesystem::path& file);
std::vector<Figure> read_vllm_bench(const std::string& text, const std::filesystem::path& file);
std::vector<Figure> read_llama_bench(const std::string& text, const std::filesystem::path& file);
std::vector<Figure> read_aiconfigurator(const std::string& text, const std::filesystem::path& file);

}  // namespace reading

}  // namespace kvatlas::sweep

// The rows of `evaluate`: one JSON object a method with every key of the contract, their table, and how rankings of two runs compare.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/commands/support/record.hpp"
#include "core/layer_graph.hpp"
#include "models/evaluation/captured.hpp"
#include "models/evaluation/task_protocol.hpp"
#include "models/evaluation/text_protocol.hpp"
#include "reference/compose/recipe.hpp"
#include "sweeps/quality.hpp"

namespace kvatlas::cli {

/// What all rows of a run say.
struct EvaluationRun {
  std::string quality_model, text_hash, protocol, grade;  // no hash, no protocol: empty
  std::int64_t context = 0, seed = 0;
  Dtype dtype = Dtype::bf16;
  std::optional<Tokens> trained_context{};
  std::int64_t scored = 0, windows = 0, chunk = 0;  // of captures: scored tokens of a prompt, prompts, 0
  std::int64_t trials = 0;      // of each task; 0: no tasks
  std::string trained_hash{};   // of the file of trained parts; no file: empty
};

/// The sentence of a run whose last scored token lies beyond the context that the model was trained on.
std::optional<std::string> beyond_training(const EvaluationRun& run);

/// A row with every key of the contract; what was not measured is null. `recipe` is the one that ran.
Json empty_row(const EvaluationRun& run, const Recipe& recipe);
void fill_text(Json& row, const EvaluationRun& run, const models::TextResult& result, const models::TextSummary& summary, bool baseline);
void fill_tasks(Json& row, const models::TaskResults& result);
void fill_captured(Json& row, const models::CapturedScore& score);

/// Adds to every row how well the ranking of this run's methods agrees with another run's rows: Kendall's tau over the methods that
/// both ranked, by mean KL where both measured it, else by the error of attention; at equal bits or budget where enough share them.
/// Captured rows against a run on weights: their error of attention against its mean KL, whatever its context.
/// throws   IoError when the other file holds no rows of `evaluate`; InvalidArgument when its context, protocol or figures differ
void fill_transfer(Json& rows, const std::string& other_file, const models::Bootstrap& bootstrap);

/// Adds a sentence to a row's note.
void add_note(Json& row, const std::string& sentence);

/// Figures of the rows as a store keeps them. What a perplexity retains is none where the run is too small to be evidence.
std::vector<sweep::QualityRow> quality_rows(const Json& rows, const EvaluationRun& run, const std::string& model, const std::string& source);

void print_rows(const Streams& io, const Json& rows, const EvaluationRun& run);

}  // namespace kvatlas::cli

// What `evaluate` does with weights: a model and its text, read once, and the rows of many recipes on them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/commands/support/evaluation_rows.hpp"
#include "cli/commands/support/options.hpp"
#include "models/evaluation/session.hpp"

namespace kvatlas::cli {

struct Reading {
  models::LoadedModel model;
  std::string text;
  std::vector<models::TokenId> tokens;  // of the text
};

/// --weights and --text of the command.
Reading load_reading(const Parsed& p, const Streams& io, const char* command);

/// The row of the recipe that ran; where that is not the one asked for, a note says so.
Json row_of(const EvaluationRun& run, const Recipe& asked, const std::string& ran);

/// Rows of `full` and of every recipe, in their order; those that cannot serve the model stand behind, with their sentences. `run` says how.
/// trained  parts of the user's file; what methods find in the weights joins them
/// throws   UsageError: the text is too short, or the run contradicts itself
Json measure(const Reading& reading, const std::vector<Recipe>& recipes, TensorMap& trained, const EvaluationRun& run, const std::vector<std::string>& tasks,
             const std::function<void(const std::string&)>& progress);

}  // namespace kvatlas::cli

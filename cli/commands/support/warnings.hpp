// What a command says beside its answer: a legal question whose answer would be misread without a word.
#pragma once

#include <string>
#include <vector>

#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "models/model.hpp"
#include "reference/compose/recipe.hpp"

namespace kvatlas::cli {

/// Sentences in the order in which they are said, each once.
class Warnings {
 public:
  void add(std::string sentence);
  /// What the import of a config.json did not understand or had to assume; nothing for shipped models.
  void add_model(const models::Model& model);
  /// A method whose budget is above the context keeps everything.
  void add_budgets(const Recipe& recipe, Tokens context);
  /// One layer is layer 0: methods that leave the first layers plain leave all that was given plain.
  void add_plain_first_layer(const Recipe& recipe);
  /// Percentile spellings of the limits are taken as the limits of the closed form.
  void add_slo(const Parsed& p);

  const std::vector<std::string>& sentences() const { return sentences_; }
  /// One line each on standard error.
  void print(const Streams& io, const char* command) const;
  Json json() const { return sentences_; }

 private:
  std::vector<std::string> sentences_;
};

}  // namespace kvatlas::cli

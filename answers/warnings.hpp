// What an answer says beside its figures: a legal question whose answer would be misread without a word.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "models/model.hpp"
#include "reference/compose/recipe.hpp"

namespace kvatlas::answers {

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
  /// Percentile spellings of the limits ("ttft_p99_ms=2000,tpot_ms=50") are taken as the limits of the closed form.
  void add_slo(std::string_view limits);

  const std::vector<std::string>& sentences() const { return sentences_; }

 private:
  std::vector<std::string> sentences_;
};

}  // namespace kvatlas::answers

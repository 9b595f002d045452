#include "answers/warnings.hpp"

#include <algorithm>
#include <optional>

#include "core/errors.hpp"

namespace kvatlas::answers {

namespace {

/// The value of a parameter by its name, where the method has it.
std::optional<double> param_named(const MethodChoice& choice, std::string_view name, std::string_view unit) {
  const auto specs = choice.method->params;
  for (std::size_t i = 0; i < specs.size(); ++i)
    if (specs[i].name == name && specs[i].unit == unit) return choice.row[i];
  return std::nullopt;
}

}  // namespace

void Warnings::add(std::string sentence) {
  std::replace(sentence.begin(), sentence.end(), '\n', ' ');  // a field's name comes from a file
  if (std::find(sentences_.begin(), sentences_.end(), sentence) == sentences_.end()) sentences_.push_back(std::move(sentence));
}

void Warnings::add_model(const models::Model& model) {
  for (const std::string& warning : model.warnings) add(cat(model.slug, ": ", warning));
}

void Warnings::add_budgets(const Recipe& recipe, Tokens context) {
  for (const Rule& rule : recipe.rules())
    for (const MethodChoice* choice : {&rule.key, &rule.value}) {
      const auto budget = param_named(*choice, "budget", "token");
      if (!budget || *budget <= static_cast<double>(context.value)) continue;
      add(cat(choice->method->slug, ": budget is ", static_cast<std::int64_t>(*budget), ", context is ", context.value, ": ",
              choice->method->family == Family::retrieval ? "every token is attended" : "nothing is dropped"));
    }
}

void Warnings::add_plain_first_layer(const Recipe& recipe) {
  for (const Rule& rule : recipe.rules())
    for (const MethodChoice* choice : {&rule.key, &rule.value}) {
      const auto layers = param_named(*choice, "dense_layers", "layer");
      if (!layers || *layers <= 0) continue;
      add(cat(choice->method->slug, ": dense_layers is ", static_cast<std::int64_t>(*layers),
              " and the one layer given counts as layer 0, so it stays plain: write dense_layers=0 to compress it"));
    }
}

void Warnings::add_slo(std::string_view rest) {
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find(','), rest.size());
    const std::string_view name = rest.substr(0, std::min(rest.find('='), end));
    if (name == "ttft_p99_ms" || name == "tpot_p99_ms")
      add(cat("slo ", name, " is taken as ", name.substr(0, 4), "_ms: the closed form has no percentiles"));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
}

}  // namespace kvatlas::answers

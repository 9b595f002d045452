// What a recipe stores on a shape: the ledger, bits of one original value, and the plans of a step and of the prompt.
#pragma once

#include <string>
#include <vector>

#include "answers/bits.hpp"
#include "answers/record.hpp"

namespace kvatlas::answers {

struct Storage {
  Json json;            // ledger, totals, bits by kind, plans; all null when the recipe cannot serve the shape
  std::string refusal;  // why it cannot; empty when it can
  std::vector<std::string> formulas;
  BitsByKind bits;
};

/// released  the plan of the official code instead of the ideal one
Storage storage(const Recipe& recipe, const CacheShape& shape, const History& history, bool released);

}  // namespace kvatlas::answers

// Bits of one original value by kind of component: what a ledger means to somebody who compares formats.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/ledger.hpp"
#include "core/layer_graph.hpp"
#include "core/plan.hpp"
#include "reference/components.hpp"
#include "reference/compose/recipe.hpp"

namespace kvatlas::answers {

struct BitsByKind {
  double values = 0;                              // keys and values of the plain cache, all sequences
  std::array<double, kBitKindCount> bytes{};      // sums to the ledger's total
  double page_padding_bytes = 0;                  // what whole pages of `page` tokens add
  std::int64_t page = 0;
  double temporary_bytes = 0;                     // the most that one launch of a decode step writes beside the cache
  double prompt_bytes = 0;                        // held beside the stored form until the prompt is compressed
  std::vector<std::string> formulas;              // with the numbers put in
  double bits(double of_bytes) const { return values > 0 ? 8 * of_bytes / values : 0; }
};

/// throws as the recipe does where it cannot serve the shape
BitsByKind bits_by_kind(const Recipe& recipe, const CacheShape& shape, const History& history, std::int64_t page, const Plan& step);

}  // namespace kvatlas::answers

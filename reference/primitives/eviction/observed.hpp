// Scores from the attention weights of all queries of a prompt.
#pragma once

#include "reference/primitives/eviction/rule.hpp"

namespace kvatlas::eviction {

/// Gives the rule a word "mass" of 8 bytes a slot: the weights of all query heads of the owner, summed in fixed point.
void observe_mass(Rule& rule);

/// Mass over the number of queries that could see the slot, mean over the query heads of an owner.
Scorer mean_observed();

}  // namespace kvatlas::eviction

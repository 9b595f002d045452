// Scorers of the eviction engine: from keys alone, and from the attention of newest queries.
#pragma once

#include "reference/primitives/eviction/params.hpp"
#include "reference/primitives/eviction/rule.hpp"
#include "reference/primitives/window_scores.hpp"

namespace kvatlas::eviction {

/// Minus the Euclidean norm of the key: short keys stay.
Scorer key_norm();

/// Minus the cosine between a key and the mean of all unit keys of its head: unusual keys stay. Order: unit key = key /
/// max(norm, 1e-12); the mean adds slots in ascending order in float64, one rounding; norms and products are lane sums.
Scorer key_difference();

/// Attention of the prompt's last `window` queries; their own slots get no score (window_masses, reduce_masses).
Scorer window_attention(Tokens window, const ScoreReduce& reduce);

/// The same, unpooled, every query's weights times its position: a query that sees more tokens gives each of them less. Fixed point,
/// one conversion, / window, / group.
Scorer position_weighted_attention(Tokens window, bool by_position);

/// Attention of the newest query, its own slot included: mean over all query heads, one set of scores for all row owners.
Scorer last_attention();

/// The scorer that a wrapper of any head score was asked for. With `tova` the newest slot gets no score and always stays.
Scorer scorer_of(BaseScore base, const WindowParams& window);

/// Pieces of `charge`: the kernel of window scores, and one that reads `passes` times the keys (or `dim` values a row).
void charge_window(const Charge& charge, Tokens window);
void charge_rows(const Charge& charge, int dim, int passes = 1);
/// The newest query's weights: a pass over the keys when the prompt ends; in a step attention hands them out and they are averaged.
void charge_last(const Charge& charge);

}  // namespace kvatlas::eviction

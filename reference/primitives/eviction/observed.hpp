// Scores from the attention weights of all queries, and from attention without a causal mask inside chunks.
#pragma once

#include "reference/primitives/eviction/rule.hpp"

namespace kvatlas::eviction {

/// Gives the rule a word "mass" of 8 bytes a slot: the weights of all query heads of the owner, summed in fixed point.
void observe_mass(Rule& rule);

/// Mass over the number of queries that could see the slot, mean over the query heads of an owner.
Scorer mean_observed();

struct ChunkAttention {
  std::int64_t chunk = 256;
  bool scaled = true;    // logits times the class's scale; else q.k as it is
  bool padded = false;   // the last chunk is filled up with zero queries and keys, which take and give weight
  int kernel = 3;
};

/// Columns of softmax(q.k) within chunks of the prompt, without a mask: the mass of a key from all queries of its chunk, times
/// the norm of its value, pooled by average, mean over the query heads of an owner.
Scorer chunk_attention(const ChunkAttention& how);

}  // namespace kvatlas::eviction

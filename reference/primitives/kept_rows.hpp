// Ledgers and plans of methods that keep the same number of rows in every head of every layer.
#pragma once

#include "core/ledger.hpp"
#include "core/layer_graph.hpp"
#include "core/plan.hpp"

namespace kvatlas {

/// Rows of `kept` tokens in every kv layer, and what layers of other kinds hold.
Ledger kept_ledger(const CacheShape& stored, const History& h, Tokens kept);

/// kv heads of all sequences and all kv layers together: how often a record per slot is held.
std::int64_t stored_heads(const CacheShape& stored, const History& h);

/// How one decode step reads the rows that were kept.
struct KeptAttention {
  Tokens tokens{0};            // attended to, the new one included
  bool rotate_keys = false;    // keys are stored before RoPE
  bool emit_weights = false;
  Tokens run{0};               // entries that lie contiguously, 0 = all
  double steps = 1.0;          // such steps
};

/// Append of one token and attention over the kept ones in every layer of `c`.
void add_kept_step(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, const KeptAttention& how);

/// Moves of `rows` rows of keys and values in every kv head of `c` (a selection's compaction).
void add_compaction(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, std::int64_t rows, double launches);

}  // namespace kvatlas

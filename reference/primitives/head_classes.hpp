// A decode step of layers whose heads are of two kinds: some read every token, the others a bounded number.
#pragma once

#include "core/layer_graph.hpp"
#include "core/ledger.hpp"
#include "core/plan.hpp"

namespace kvatlas {

/// Append of one token, and two calls of attention a layer: `all_rows` for the full heads, `short_rows` for the others. `full` heads of all
/// layers of `c` are spread evenly: every layer holds the same number of them, or one more.
void add_head_classes_step(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, std::int64_t full, std::int64_t all_rows, std::int64_t short_rows);

}  // namespace kvatlas

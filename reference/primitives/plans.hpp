// Plans and ledgers that many methods share: plain rows, coded rows with a plain residue, prompt attention.
#pragma once

#include "core/ledger.hpp"
#include "core/plan.hpp"
#include "core/layer_graph.hpp"
#include "reference/faces.hpp"

namespace kvatlas {

/// Rows of every owner in the dtype, windows cut; recurrent states and learned index rows are counted beside them.
Ledger dense_ledger(const CacheShape& shape, const History& h);

/// Bytes of all sequences' uncompressed rows of one class for `context` tokens each.
Bytes dense_rows(const LayerClass& c, Dtype dtype, Tokens context, int sequences);

/// Attention of one decode step over `tokens` stored entries of every layer of `c`, with the merge of its spans.
void add_decode_attention(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, Tokens tokens,
                          const SideLayout& key, const SideLayout& value);

/// The same over plain rows.
void add_decode_attention(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, Tokens tokens);

/// Appends one token's rows in plain dtype in every layer of `c`.
void add_append(Plan& plan, const LayerClass& c, Dtype dtype, const History& h);

/// Classes without key-value rows: recurrent states are read and rewritten, nothing else.
bool add_state_step(Plan& plan, const LayerClass& c, const History& h);

/// The learned index of a class in one step: every index row is scored and the best index_top_k are chosen. Returns the
/// entries that attention reads: all of them, without a step, while there is nothing to choose. The heads of the index
/// query are reduced in the kernel; a class does not say how many there are, so the arithmetic is that of one.
Tokens add_index_step(Plan& plan, const LayerClass& c, const History& h);

Plan dense_decode_plan(const CacheShape& shape, const History& h);

/// Attention of the prompt in its chunks, every layer, causal; `density` is the share of causal pairs that is computed.
/// Rows are appended in the dtype.
Plan dense_prefill_plan(const CacheShape& shape, const History& h, double density = 1.0);

/// The layout of one side of a class at a context.
using SideLayoutOf = std::function<SideLayout(const LayerClass& c, Side side, Tokens context)>;

/// A decode step of the layers of one class whose sides are kept apart.
void add_side_decode(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, const SideLayoutOf& layout);

/// Plans of methods whose two sides are coded apart: rows are appended (coded at once, or plain and flushed later, the
/// flush spread over the steps between two of them) and read by one fused kernel.
Plan side_decode_plan(const CacheShape& shape, const History& h, const SideLayoutOf& layout);
/// Prompt attention; rows that are coded as they come are appended in their format, others in the dtype with one quantize
/// pass over what the layout codes after it.
Plan side_prefill_plan(const CacheShape& shape, const History& h, const SideLayoutOf& layout);

}  // namespace kvatlas

// Attention over a listed subset of a cache's rows, and which rows a new token may see: what every retrieval method ends in.
#pragma once

#include <optional>
#include <span>

#include "reference/cache.hpp"
#include "reference/primitives/selection.hpp"

namespace kvatlas {

/// The rows that new token `query` of a step sees, ascending, among `old` earlier rows and the n new ones behind them.
Slots seen_rows(const AttentionMask& mask, std::int64_t old, std::int64_t n, std::int64_t query);

/// One query over the listed rows of its kv head, in canonical order: tiles and spans are those of an attention that has no
/// other rows, so that a list of all seen rows gives the bits of dense attention.
/// q  [k_dim] prepared; k, v  [rows, dim]; rows ascending; sink: the head's learned logit in natural units, where it has one
void attend_listed(const LayerClass& c, std::span<const float> q, View<const float> k, View<const float> v,
                   std::span<const std::int64_t> rows, std::optional<float> sink, std::span<float> out);

/// Rows that are already gathered: one query over all rows of k and v.
void attend_gathered(const LayerClass& c, std::span<const float> q, View<const float> k, View<const float> v,
                     std::optional<float> sink, std::span<float> out);

/// The listed rows of a [rows, dim] view, one behind the other.
Array gather_rows(View<const float> from, std::span<const std::int64_t> rows);

/// The sink logit of a query head, where the class and the step have one.
std::optional<float> sink_of(const LayerClass& c, const StepInput& step, int q_head);

/// Rows of a class's kv head that the lists of its q heads load together, when every head lists `listed` of `context` rows
/// independently of the others: context * (1 - (1 - listed/context)^q_per_kv), at most q_per_kv * listed. Heads of one
/// group agree more than that, so this is the dear side of the truth.
Tokens expected_union(Tokens listed, Tokens context, int q_per_kv);

/// Layers of a class below `first` (by index in the model).
int layers_below(const LayerClass& c, int first);

/// The class without its layers below `first`.
LayerClass layers_from(LayerClass c, int first);

/// Why a method that lists rows of a growing cache cannot serve a shape: windows and rows that are not keys and values.
std::optional<std::string> why_not_listed(const CacheShape& shape);

}  // namespace kvatlas

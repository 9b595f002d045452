// Answers of the `serving` field that most eviction methods share.
#pragma once

#include "reference/method.hpp"

namespace kvatlas::eviction {

/// Chosen once, when the prompt is complete; equal counts in all heads.
inline constexpr Serving kServingOnce{
    .prefix_cache = {Works::no, "the choice depends on the whole prompt, and dropped rows are gone"},
    .paged_cache = {Works::yes, "each kv head fills its pages with its own tokens; counts are equal"},
    .chunked_prefill = {Works::yes, "the choice comes when the prompt is complete; all of its rows are held until then"},
    .cuda_graphs = {Works::yes, "decode steps are those of an uncompressed cache"},
    .tensor_parallelism = {Works::yes, "kv heads choose independently"},
    .speculation = {Works::yes, "generated tokens are all kept and can be taken back"},
    .multi_turn = {Works::partly, "what the first question did not need is gone for the second"}};

/// The same, and kept keys move to new positions.
inline constexpr Serving kServingMoved{.prefix_cache = kServingOnce.prefix_cache,
                                       .paged_cache = kServingOnce.paged_cache,
                                       .chunked_prefill = kServingOnce.chunked_prefill,
                                       .cuda_graphs = kServingOnce.cuda_graphs,
                                       .tensor_parallelism = kServingOnce.tensor_parallelism,
                                       .speculation = {Works::partly, "generated tokens can be taken back; trees would need a slot twice"},
                                       .multi_turn = kServingOnce.multi_turn};

/// Chosen once; heads hold different numbers of rows.
inline constexpr Serving kServingRagged{
    .prefix_cache = {Works::no, "the choice depends on the whole prompt, and dropped rows are gone"},
    .paged_cache = {Works::partly, "needs a page table for each kv head"},
    .chunked_prefill = {Works::yes, "the choice comes when the prompt is complete; all of its rows are held until then"},
    .cuda_graphs = {Works::partly, "lengths differ by head and are read from memory"},
    .tensor_parallelism = {Works::partly, "heads compete for one budget, and ranks hold different numbers of rows"},
    .speculation = {Works::yes, "generated tokens are all kept and can be taken back"},
    .multi_turn = {Works::partly, "what the first question did not need is gone for the second"}};

/// Chosen after every step as well.
inline constexpr Serving kServingStep{
    .prefix_cache = {Works::no, "dropped rows are gone, and which ones depends on what follows"},
    .paged_cache = {Works::partly, "each step frees one slot somewhere in the middle of the pages"},
    .chunked_prefill = {Works::yes, "the first choice comes when the prompt is complete"},
    .cuda_graphs = {Works::yes, "constant shapes once the budget is full"},
    .tensor_parallelism = {Works::yes, "kv heads choose independently"},
    .speculation = {Works::no, "a rejected token may have pushed out another one"},
    .multi_turn = {Works::partly, "evicted tokens do not come back"}};

/// A draft model chooses the tokens of a prompt that are shown to the target.
inline constexpr Serving kServingShown{
    .prefix_cache = {Works::no, "the same prefix is shown in parts that depend on what follows it, at new positions"},
    .paged_cache = kServingOnce.paged_cache,
    .chunked_prefill = {Works::yes, "the choice is made before the first chunk"},
    .cuda_graphs = kServingOnce.cuda_graphs,
    .tensor_parallelism = {Works::yes, "all ranks are shown the same tokens; the draft runs before them"},
    .speculation = kServingOnce.speculation,
    .multi_turn = kServingOnce.multi_turn};

}  // namespace kvatlas::eviction

// Caches from which a share of every prompt leaves by attention sums, one choice a layer for all of its heads, and the same share of
// what is generated, one row at a time from a slot that the prompt has fixed.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/plan.hpp"
#include "reference/primitives/token_cache.hpp"

namespace kvatlas {

/// Attention that every slot of a prompt got from all queries and query heads of a layer, in fixed point (num::to_mass).
using SlotMasses = std::vector<std::uint64_t>;

struct PromptShare {
  Tokens sinks{1};              // first tokens, never evicted; so is the last token of the prompt
  bool content_counts = false;  // rows depend on the content (the record is data_dependent)
  /// Slot from which rows leave later: from the end of the prompt's rows if below 0, else from their start; the middle one where that
  /// would be the first or lie before it.
  std::int64_t distance = -25;
  /// Rows that leave each layer when the prompt ends; cut to the candidates between `sinks` and the last token.
  std::function<std::vector<std::int64_t>(const std::vector<SlotMasses>& layers)> leave{};
  /// The share of generated tokens that leaves a layer, in [0, 1); `prompt` may be 0.
  std::function<double(int layer, std::int64_t prompt, std::int64_t kept)> share{};
  /// Candidates that stay when `leave` of them go; none: those of the largest mass, of equal ones the lower.
  std::function<Slots(std::span<const std::uint64_t> candidates, std::int64_t leave)> stay{};
  /// What kept rows take over from the others before these are freed.
  std::function<void(TokenRows& rows, int head, const Slots& kept)> fate{};
};

/// Rows of a layer that held `kept` of its prompt: a step drops one as soon as that leaves (1 - share) of all tokens, but never falls
/// below `kept`.
std::int64_t rows_of_share(std::int64_t prompt, std::int64_t kept, double share, std::int64_t generated);

std::unique_ptr<KvCache> open_prompt_share(PromptShare rule, const CacheShape& shape);

/// What a formula knows or expects of every layer.
struct ExpectedShare {
  std::int64_t kept = 0;  // rows of the prompt
  double share = 0;
};
Ledger share_ledger(const CacheShape& shape, const History& h, const ExpectedShare& expected, const ContentCounts& counts);
/// Attention over what is held; the rows behind the slot move up by one whenever a row leaves.
Plan share_decode_plan(const CacheShape& shape, const History& h, const ExpectedShare& expected, std::int64_t distance, const ContentCounts& counts);
/// The same where all rows are written anew whenever one leaves, as released codes do.
Plan share_released_plan(const CacheShape& shape, const History& h, const ExpectedShare& expected, const ContentCounts& counts);
/// Prompt attention, a second pass for the sums, top-k and moves; `merged` of the rows that leave are added to others.
Plan share_prefill_plan(const CacheShape& shape, const History& h, const ExpectedShare& expected, std::int64_t merged);

}  // namespace kvatlas

// A seeded two-layer transformer that runs its attention through any cache, and a draft made of the same model with mistakes.
// Every token is computed alone in a fixed order, so batching tokens cannot change a bit.
#pragma once

#include <memory>
#include <vector>

#include "reference/faces.hpp"
#include "tests/support/scenario.hpp"

namespace kvatlas::test {

/// Logits of every call, where a test wants to see them.
using LogitLog = std::vector<std::uint32_t>;

/// A target of this shape with random weights. `sharpness` scales the logits. Every call's logits are appended to `log`.
TargetModel tiny_model(const CacheShape& shape, int vocabulary, std::uint64_t seed, float sharpness = 6.0F, LogitLog* log = nullptr);

struct TinyDraft {
  int depth = 4;
  int width = 1;               // children of each node of the main line; the others are random tokens
  std::int64_t one_in = 4;     // every so many tokens of the main line is replaced by a random one; 0 = never
  bool sampled = false;        // draws from the model's distribution and states it, instead of taking the argmax
  std::uint64_t seed = 1;
};
/// Proposes the greedy continuation of `target` (through an own full cache), with mistakes.
DraftModel tiny_draft(const TargetModel& target, const TinyDraft& how);

/// Plain decoding: `count` greedy tokens behind the prompt, one at a time through `cache`.
std::vector<TokenId> decode_greedily(const TargetModel& target, KvCache& cache, const std::vector<TokenId>& prompt, std::int64_t count);

std::vector<TokenId> random_prompt(std::int64_t tokens, int vocabulary, std::uint64_t seed);

}  // namespace kvatlas::test

// Byte-pair merging: the pair of lowest cost first, of equals the leftmost, until no pair is left that may be merged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <queue>
#include <vector>

#include "models/tokenizer/vocabulary.hpp"

namespace kvatlas::models {

/// A stretch of the text between merges; symbols form a list in the order of the text, index 0 first.
struct Symbol {
  std::size_t begin = 0, bytes = 0;  // bytes 0: merged into its left neighbour
  TokenId id = kNoToken;
  bool fixed = false;  // never merged
};

struct PairMerge {
  double cost = 0;
  TokenId id = kNoToken;
};

/// Merges in place and drops what was merged away.
/// pair   (const Symbol& left, const Symbol& right) -> optional<PairMerge>: whether two neighbours may be merged, and into what
template <class Pair>
void merge_symbols(std::vector<Symbol>& symbols, const Pair& pair) {
  struct Candidate {
    double cost;
    std::size_t left, right, bytes;
    TokenId id;
    bool operator<(const Candidate& o) const { return cost > o.cost || (cost == o.cost && left > o.left); }  // the queue's top is its largest
  };
  constexpr std::size_t kEnd = static_cast<std::size_t>(-1);
  std::vector<std::size_t> before(symbols.size()), after(symbols.size());
  for (std::size_t i = 0; i < symbols.size(); ++i) {
    before[i] = i == 0 ? kEnd : i - 1;
    after[i] = i + 1 == symbols.size() ? kEnd : i + 1;
  }
  std::priority_queue<Candidate> queue;
  const auto propose = [&](std::size_t left, std::size_t right) {
    if (left == kEnd || right == kEnd || symbols[left].fixed || symbols[right].fixed) return;
    if (const std::optional<PairMerge> merge = pair(symbols[left], symbols[right]))
      queue.push({merge->cost, left, right, symbols[left].bytes + symbols[right].bytes, merge->id});
  };
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) propose(i, i + 1);
  while (!queue.empty()) {
    const Candidate c = queue.top();
    queue.pop();
    Symbol &left = symbols[c.left], &right = symbols[c.right];
    // Stale when either side has been merged since.
    if (left.bytes == 0 || right.bytes == 0 || left.bytes + right.bytes != c.bytes) continue;
    left.bytes = c.bytes;
    left.id = c.id;
    right.bytes = 0;
    after[c.left] = after[c.right];
    if (after[c.right] != kEnd) before[after[c.right]] = c.left;
    propose(before[c.left], c.left);
    propose(c.left, after[c.left]);
  }
  std::erase_if(symbols, [](const Symbol& s) { return s.bytes == 0; });
}

}  // namespace kvatlas::models

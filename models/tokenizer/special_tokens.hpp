// Cuts tokens that are whole texts of their own (user-defined, control) out of a text before anything else looks at it.
#pragma once

#include <cstddef>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "models/tokenizer/vocabulary.hpp"

namespace kvatlas::models {

/// A stretch of the text: one special token, or text between them (kNoToken).
struct Fragment {
  std::string_view text;
  TokenId id = kNoToken;
};

/// The longest token is cut out wherever it occurs, from the left, then the next shorter in what is left. So the order of lengths
/// decides, not the first place where something matches: "abc" and "bcde" make "a" + "bcde" of "abcde".
class SpecialTokens {
 public:
  /// Adds a token; texts are not empty, of equal texts the first stays.
  void add(std::string_view text, TokenId id);

  /// The whole text as fragments in its order, none of them empty.
  std::vector<Fragment> split(std::string_view text) const;

 private:
  std::size_t child(std::size_t node, char c) const;  // 0: none
  /// Calls found(bytes, id) for every token that begins at `at`.
  template <class Found>
  void walk(std::string_view text, std::size_t at, const Found& found) const;

  std::unordered_map<std::size_t, std::size_t> children_;  // node * 256 + byte -> node, the root is 0
  std::vector<TokenId> ids_{kNoToken};                     // by node
  std::vector<std::size_t> lengths_;                       // that occur, descending
};

}  // namespace kvatlas::models

// The tokens of a model as its file lists them: texts, kinds, and which of them begin and end a text.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "models/files/gguf.hpp"

namespace kvatlas::models {

using TokenId = std::int32_t;
constexpr TokenId kNoToken = -1;

/// Numbers of GGUF's token types.
enum class TokenKind : std::uint8_t { normal = 1, unknown, control, user_defined, unused, byte };

struct Vocabulary {
  std::vector<std::string> texts;  // as the file spells them
  std::vector<TokenKind> kinds;
  std::optional<TokenId> bos, eos, unknown;
  bool add_bos = false, add_eos = false;

  TokenId size() const { return static_cast<TokenId>(texts.size()); }
  TokenKind kind(TokenId id) const { return kinds[static_cast<std::size_t>(id)]; }
  const std::string& text(TokenId id) const { return texts[static_cast<std::size_t>(id)]; }
  /// Whether encoding plain text may make this token: never of control tokens, unknown, unused or byte tokens.
  bool mergeable(TokenId id) const { return kind(id) == TokenKind::normal || kind(id) == TokenKind::user_defined; }

  /// The tokens `<0x00>` to `<0xFF>`, kNoToken where there is none.
  std::array<TokenId, 256> byte_tokens() const;
  /// Mergeable tokens by their text; of equal texts the lowest id. Views of `texts`.
  std::unordered_map<std::string_view, TokenId> by_text() const;
};

/// Reads tokenizer.ggml.tokens, token_type and the special ids.
/// throws   IoError for a missing or empty list, lists of other lengths, kinds that GGUF does not know and ids outside the list
Vocabulary read_vocabulary(const Gguf& file);

}  // namespace kvatlas::models

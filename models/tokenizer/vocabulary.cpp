#include "models/tokenizer/vocabulary.hpp"

#include "core/errors.hpp"
#include "models/files/printable.hpp"

namespace kvatlas::models {

namespace {

constexpr std::size_t kMaxVocabulary = std::size_t{1} << 24;

std::optional<TokenId> special_id(const Gguf& file, std::string_view key, std::size_t tokens) {
  const std::optional<std::int64_t> id = file.integer(key);
  if (!id) return std::nullopt;
  if (*id < 0 || *id >= static_cast<std::int64_t>(tokens))
    throw IoError(cat(file.name, ": ", printable(key), " is ", *id, ", must be an id below ", tokens));
  return static_cast<TokenId>(*id);
}

int hex_digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

/// The byte that `<0x0A>` means, -1 for any other text.
int byte_of(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  const int high = hex_digit(text[3]), low = hex_digit(text[4]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

}  // namespace

std::array<TokenId, 256> Vocabulary::byte_tokens() const {
  std::array<TokenId, 256> out{};
  out.fill(kNoToken);
  for (TokenId id = 0; id < size(); ++id) {
    if (kind(id) != TokenKind::byte) continue;
    if (const int byte = byte_of(text(id)); byte >= 0 && out[static_cast<std::size_t>(byte)] == kNoToken) out[static_cast<std::size_t>(byte)] = id;
  }
  return out;
}

std::unordered_map<std::string_view, TokenId> Vocabulary::by_text() const {
  std::unordered_map<std::string_view, TokenId> out;
  out.reserve(texts.size());
  for (TokenId id = 0; id < size(); ++id)
    if (mergeable(id) && !text(id).empty()) out.emplace(text(id), id);
  return out;
}

Vocabulary read_vocabulary(const Gguf& file) {
  const auto tokens = file.texts("tokenizer.ggml.tokens");
  if (!tokens || tokens->empty() || tokens->size() > kMaxVocabulary)
    throw IoError(cat(file.name, ": tokenizer.ggml.tokens lists ", tokens ? tokens->size() : 0, " tokens, must be 1 to ", kMaxVocabulary));
  Vocabulary out;
  out.texts.assign(tokens->begin(), tokens->end());
  out.kinds.assign(tokens->size(), TokenKind::normal);
  if (const auto kinds = file.integers("tokenizer.ggml.token_type")) {
    if (kinds->size() != tokens->size())
      throw IoError(cat(file.name, ": tokenizer.ggml.token_type lists ", kinds->size(), " kinds, must be as many as there are tokens (", tokens->size(), ")"));
    for (std::size_t i = 0; i < kinds->size(); ++i) {
      const std::int64_t kind = (*kinds)[i];
      if (kind < 1 || kind > 6) throw IoError(cat(file.name, ": tokenizer.ggml.token_type of token ", i, " is ", kind, ", must be 1 to 6"));
      out.kinds[i] = static_cast<TokenKind>(kind);
    }
  }
  out.bos = special_id(file, "tokenizer.ggml.bos_token_id", tokens->size());
  out.eos = special_id(file, "tokenizer.ggml.eos_token_id", tokens->size());
  out.unknown = special_id(file, "tokenizer.ggml.unknown_token_id", tokens->size());
  return out;
}

}  // namespace kvatlas::models

// SentencePiece-style BPE by score with byte fallback: Llama 2, Gemma.
#include <algorithm>
#include <cmath>

#include "core/errors.hpp"
#include "models/tokenizer/merge.hpp"
#include "models/tokenizer/tokenizer.hpp"

namespace kvatlas::models {

namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, how these vocabularies write a space

/// Bytes of a character by its first byte alone: broken text is cut as llama.cpp cuts it.
std::size_t announced_bytes(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

class ScoreTokenizer final : public Tokenizer {
 public:
  ScoreTokenizer(Vocabulary tokens, std::vector<float> scores, bool prefix_space)
      : Tokenizer(std::move(tokens)), scores_(std::move(scores)), prefix_space_(prefix_space), by_text_(vocabulary().by_text()), bytes_(vocabulary().byte_tokens()) {
    for (std::size_t i = 0; i < scores_.size(); ++i)
      if (std::isnan(scores_[i])) throw IoError(cat("the score of token ", i, " is no number"));
    for (const auto& [text, id] : by_text_) longest_ = std::max(longest_, text.size());
    spells_space_ = true;
    for (const char c : kSpace) spells_space_ = spells_space_ && bytes_[static_cast<unsigned char>(c)] != kNoToken;
    for (std::size_t b = 0; b < 256; ++b)
      if (bytes_[b] != kNoToken) byte_text_.emplace(bytes_[b], static_cast<char>(b));
  }

 private:
  void encode_plain(std::string_view text, bool opening, bool dropped, std::vector<TokenId>& out) const override {
    std::string escaped;
    escaped.reserve(text.size() + text.size() / 2 + 3);
    std::vector<Symbol> symbols;
    const auto add = [&](std::string_view symbol, bool fixed) {
      symbols.push_back({escaped.size(), symbol.size(), kNoToken, fixed});
      escaped += symbol;
    };
    if (opening && prefix_space_) add(kSpace, false);
    for (std::size_t at = 0; at < text.size();) {
      if (text[at] == ' ') {
        add(kSpace, false);
        ++at;
      } else if (spells_space_ && text.substr(at, kSpace.size()) == kSpace) {
        for (std::size_t b = 0; b < kSpace.size(); ++b) add(kSpace.substr(b, 1), true);
        at += kSpace.size();
      } else {
        // A character that is cut off must not swallow the space behind it, which would come back as U+2581.
        std::string_view symbol = text.substr(at, announced_bytes(text[at]));
        symbol = symbol.substr(0, symbol.find(' '));
        add(symbol, false);
        at += symbol.size();
      }
    }
    const std::string_view whole = escaped;
    const auto find = [&](const Symbol& s) { return find_token(whole.substr(s.begin, s.bytes)); };
    merge_symbols(symbols, [&](const Symbol& left, const Symbol& right) -> std::optional<PairMerge> {
      const TokenId id = find_token(whole.substr(left.begin, left.bytes + right.bytes));
      if (id == kNoToken) return std::nullopt;
      return PairMerge{-static_cast<double>(scores_[static_cast<std::size_t>(id)]), id};
    });
    for (const Symbol& s : symbols) {
      const TokenId id = s.fixed ? kNoToken : find(s);
      if (id != kNoToken) {
        out.push_back(id);
        continue;
      }
      for (const char c : whole.substr(s.begin, s.bytes)) {
        const auto byte = static_cast<unsigned char>(c);
        if (bytes_[byte] != kNoToken) {
          out.push_back(bytes_[byte]);
        } else if (const TokenId letter = find_token({&c, 1}); letter != kNoToken) {
          out.push_back(letter);
        } else if (!dropped) {
          refuse_byte(byte);
        }
      }
    }
  }

  std::string plain_text(TokenId id, bool opening) const override {
    if (vocabulary().kind(id) == TokenKind::byte) {
      const auto byte = byte_text_.find(id);
      return byte == byte_text_.end() ? std::string() : std::string(1, byte->second);
    }
    std::string out;
    const std::string_view text = vocabulary().text(id);
    for (std::size_t at = 0; at < text.size();) {
      const bool space = text.substr(at, kSpace.size()) == kSpace;
      out += space ? ' ' : text[at];
      at += space ? kSpace.size() : 1;
    }
    if (opening && prefix_space_ && out.starts_with(' ')) out.erase(0, 1);
    return out;
  }

  TokenId find_token(std::string_view text) const {
    if (text.size() > longest_) return kNoToken;
    const auto found = by_text_.find(text);
    return found == by_text_.end() ? kNoToken : found->second;
  }

  std::vector<float> scores_;
  bool prefix_space_, spells_space_ = false;
  std::unordered_map<std::string_view, TokenId> by_text_;
  std::array<TokenId, 256> bytes_;
  std::unordered_map<TokenId, char> byte_text_;
  std::size_t longest_ = 0;
};

}  // namespace

std::unique_ptr<Tokenizer> make_score_tokenizer(Vocabulary vocabulary, std::vector<float> scores, bool prefix_space) {
  return std::make_unique<ScoreTokenizer>(std::move(vocabulary), std::move(scores), prefix_space);
}

}  // namespace kvatlas::models

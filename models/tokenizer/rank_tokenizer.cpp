// Byte-level BPE with merges: GPT-2, SmolLM2, Llama 3, Qwen.
#include <algorithm>

#include "core/errors.hpp"
#include "models/files/printable.hpp"
#include "models/tokenizer/merge.hpp"
#include "models/tokenizer/pretokenizer.hpp"
#include "models/tokenizer/tokenizer.hpp"
#include "models/tokenizer/utf8.hpp"

namespace kvatlas::models {

namespace {

/// GPT-2's alphabet: printable bytes of Latin-1 stand for themselves, the other 68 for U+0100 onwards in their order.
std::array<char32_t, 256> alphabet() {
  std::array<char32_t, 256> out{};
  char32_t next = 256;
  for (std::size_t b = 0; b < 256; ++b) {
    const bool printable_byte = (b >= 33 && b <= 126) || (b >= 161 && b != 173);
    out[b] = printable_byte ? static_cast<char32_t>(b) : next++;
  }
  return out;
}

/// A token's text as bytes; none when it holds anything outside the alphabet.
std::optional<std::string> bytes_of(std::string_view text) {
  static const std::array<int, 324> back = [] {
    std::array<int, 324> table{};
    table.fill(-1);
    const std::array<char32_t, 256> letters = alphabet();
    for (std::size_t b = 0; b < 256; ++b) table[letters[b]] = static_cast<int>(b);
    return table;
  }();
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Char c = utf8_char(text, at);
    if (c.code >= back.size() || back[c.code] < 0) return std::nullopt;
    out += static_cast<char>(back[c.code]);
    at += c.bytes;
  }
  return out;
}

class RankTokenizer final : public Tokenizer {
 public:
  RankTokenizer(Vocabulary tokens, std::span<const std::string_view> merges, Pretokenizer pre, bool whole_word_first)
      : Tokenizer(std::move(tokens)), pre_(pre), whole_word_first_(whole_word_first) {
    plain_.resize(vocabulary().texts.size());
    letters_.fill(kNoToken);
    for (TokenId id = 0; id < vocabulary().size(); ++id) {
      const std::string& text = vocabulary().text(id);
      std::optional<std::string> bytes = bytes_of(text);
      plain_[static_cast<std::size_t>(id)] = bytes ? std::move(*bytes) : text;
      if (bytes && plain_[static_cast<std::size_t>(id)].size() == 1 && vocabulary().mergeable(id))
        if (TokenId& letter = letters_[static_cast<unsigned char>(plain_[static_cast<std::size_t>(id)][0])]; letter == kNoToken) letter = id;
    }
    const std::unordered_map<std::string_view, TokenId> by_text = vocabulary().by_text();
    const auto token = [&](std::string_view text, std::string_view merge) {
      const auto found = by_text.find(text);
      if (found == by_text.end()) throw IoError(cat("merge ", printable(merge), " needs ", printable(text), ", which is no token"));
      return found->second;
    };
    merges_.reserve(merges.size());
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
      const std::string_view merge = merges[rank];
      const std::size_t space = merge.find(' ', 1);
      if (space == std::string_view::npos || space + 1 == merge.size() || merge.find(' ', space + 1) != std::string_view::npos)
        throw IoError(cat("merge ", rank, " is ", printable(merge), ", must be two tokens with a space between"));
      const std::string_view left = merge.substr(0, space), right = merge.substr(space + 1);
      const TokenId a = token(left, merge), b = token(right, merge);
      merges_.emplace(key(a, b), PairMerge{static_cast<double>(rank), token(cat(left, right), merge)});
    }
    if (whole_word_first_)
      for (const auto& [text, id] : by_text) words_.emplace(plain_[static_cast<std::size_t>(id)], id);
  }

 private:
  static std::uint64_t key(TokenId left, TokenId right) { return static_cast<std::uint64_t>(left) << 32U | static_cast<std::uint32_t>(right); }

  void encode_plain(std::string_view text, bool, bool dropped, std::vector<TokenId>& out) const override {
    std::vector<Symbol> symbols;
    for (const std::string_view piece : pretokenize(pre_, text)) {
      if (whole_word_first_)
        if (const auto word = words_.find(piece); word != words_.end()) {
          out.push_back(word->second);
          continue;
        }
      symbols.clear();
      for (std::size_t i = 0; i < piece.size(); ++i) {
        const TokenId id = letters_[static_cast<unsigned char>(piece[i])];
        if (id == kNoToken && !dropped) refuse_byte(static_cast<unsigned char>(piece[i]));
        symbols.push_back({i, 1, id, id == kNoToken});
      }
      merge_symbols(symbols, [&](const Symbol& left, const Symbol& right) -> std::optional<PairMerge> {
        const auto found = merges_.find(key(left.id, right.id));
        if (found == merges_.end()) return std::nullopt;
        return found->second;
      });
      for (const Symbol& s : symbols)
        if (s.id != kNoToken) out.push_back(s.id);
    }
  }

  std::string plain_text(TokenId id, bool) const override { return plain_[static_cast<std::size_t>(id)]; }

  Pretokenizer pre_;
  bool whole_word_first_;
  std::vector<std::string> plain_;  // what a token decodes to
  std::array<TokenId, 256> letters_{};
  std::unordered_map<std::uint64_t, PairMerge> merges_;
  std::unordered_map<std::string_view, TokenId> words_;  // views of plain_
};

}  // namespace

std::unique_ptr<Tokenizer> make_rank_tokenizer(Vocabulary vocabulary, std::span<const std::string_view> merges, std::string_view pretokenizer,
                                               bool whole_word_first) {
  const std::optional<Pretokenizer> pre = find_pretokenizer(pretokenizer);
  if (!pre) throw Unsupported(cat("pre-tokenizer ", printable(pretokenizer), ", must be one of ", pretokenizer_names()));
  return std::make_unique<RankTokenizer>(std::move(vocabulary), merges, *pre, whole_word_first);
}

}  // namespace kvatlas::models

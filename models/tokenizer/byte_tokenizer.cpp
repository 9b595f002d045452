// The tokenizer of byte-level models: a token is a byte.
#include "core/errors.hpp"
#include "models/tokenizer/tokenizer.hpp"

namespace kvatlas::models {

namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  explicit ByteTokenizer(Vocabulary tokens) : Tokenizer(std::move(tokens)) {}

 private:
  void encode_plain(std::string_view text, bool, bool, std::vector<TokenId>& out) const override {
    for (const char c : text) out.push_back(static_cast<unsigned char>(c));
  }
  std::string plain_text(TokenId id, bool) const override { return vocabulary().text(id); }
};

}  // namespace

std::unique_ptr<Tokenizer> make_byte_tokenizer(std::span<const std::string_view> special, std::optional<std::size_t> bos) {
  Vocabulary vocabulary;
  for (int b = 0; b < 256; ++b) vocabulary.texts.emplace_back(1, static_cast<char>(b));
  vocabulary.kinds.assign(256, TokenKind::byte);
  for (const std::string_view name : special) {
    if (name.empty()) throw InvalidArgument("a special token of a byte tokenizer has an empty name");
    vocabulary.texts.emplace_back(name);
    vocabulary.kinds.push_back(TokenKind::control);
  }
  if (bos) {
    if (*bos >= special.size()) throw InvalidArgument(cat("bos is special token ", *bos, ", there are ", special.size()));
    vocabulary.bos = static_cast<TokenId>(256 + *bos);
    vocabulary.add_bos = true;
  }
  return std::make_unique<ByteTokenizer>(std::move(vocabulary));
}

}  // namespace kvatlas::models

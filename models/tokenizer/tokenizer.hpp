// From text to token ids and back. What tokens there are and which rules make them comes from the model's file.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/files/weight_file.hpp"
#include "models/tokenizer/special_tokens.hpp"
#include "models/tokenizer/vocabulary.hpp"

namespace kvatlas::models {

struct EncodeOptions {
  bool add_special = true;        // the begin and end tokens that the file asks for
  bool parse_special = false;     // control tokens written out in the text become tokens; else they are plain text
  bool drop_unspellable = false;  // leave out bytes that the vocabulary cannot spell instead of refusing the text
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  /// Any bytes are a text; decode gives them back exactly.
  /// throws   InvalidArgument for a byte that no token of this vocabulary spells, unless it is to be dropped
  std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options = {}) const;

  /// The text of tokens; control and unknown tokens are left out unless `special`.
  /// throws   InvalidArgument for an id outside the vocabulary
  std::string decode(std::span<const TokenId> ids, bool special = false) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 protected:
  explicit Tokenizer(Vocabulary vocabulary);

  /// What text between special tokens becomes. `opening`: it begins the text or follows a special token.
  /// dropped  bytes that cannot be spelled are skipped; else they are refused
  virtual void encode_plain(std::string_view text, bool opening, bool dropped, std::vector<TokenId>& out) const = 0;
  /// The bytes of a token that is neither control nor unknown nor user-defined.
  virtual std::string plain_text(TokenId id, bool opening) const = 0;

  [[noreturn]] static void refuse_byte(unsigned char byte);

 private:
  Vocabulary vocabulary_;
  SpecialTokens user_defined_, all_special_;
};

/// SentencePiece's BPE: of all neighbours that form a token the pair of the highest score is merged; what is no token falls back
/// to bytes. Spaces are the character U+2581, which a text itself spells in byte tokens, so that it comes back.
/// scores        one for each token
/// prefix_space  a text, and what follows a special token, begins with a space that decode takes away again
std::unique_ptr<Tokenizer> make_score_tokenizer(Vocabulary vocabulary, std::vector<float> scores, bool prefix_space);

/// Byte-level BPE: bytes stand for themselves in an alphabet of printable characters, merges are taken in the order of their list.
/// merges            "left right", best first
/// whole_word_first  a piece that is a token needs no merges (Llama 3)
std::unique_ptr<Tokenizer> make_rank_tokenizer(Vocabulary vocabulary, std::span<const std::string_view> merges, std::string_view pretokenizer,
                                               bool whole_word_first);

/// 256 tokens that are their bytes, then control tokens by name.
/// bos   index into `special`: prepended by encode; none for no such token
std::unique_ptr<Tokenizer> make_byte_tokenizer(std::span<const std::string_view> special, std::optional<std::size_t> bos);

/// The tokenizer that a GGUF file describes.
/// throws   Unsupported for a model or pre-tokenizer not known here; IoError for lists that contradict each other
std::unique_ptr<Tokenizer> load_tokenizer(const Gguf& file);
/// throws also InvalidArgument for a file without metadata
std::unique_ptr<Tokenizer> load_tokenizer(const WeightFile& file);

}  // namespace kvatlas::models

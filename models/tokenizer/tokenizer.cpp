#include "models/tokenizer/tokenizer.hpp"

#include "core/errors.hpp"
#include "models/files/printable.hpp"
#include "models/tokenizer/pretokenizer.hpp"

namespace kvatlas::models {

namespace {

constexpr std::size_t kMaxTokenBytes = 4096;

bool is_hidden(TokenKind kind) { return kind == TokenKind::control || kind == TokenKind::unknown; }

/// Llama 3's files leave the flag out and mean yes.
bool adds_bos(const Gguf& file, bool otherwise) { return file.boolean("tokenizer.ggml.add_bos_token").value_or(otherwise); }

std::unique_ptr<Tokenizer> load_scores(const Gguf& file, Vocabulary vocabulary) {
  const auto numbers = file.numbers("tokenizer.ggml.scores");
  if (!numbers || numbers->size() != vocabulary.texts.size())
    throw IoError(cat(file.name, ": tokenizer.ggml.scores lists ", numbers ? numbers->size() : 0, " scores, must be as many as there are tokens (",
                      vocabulary.texts.size(), ")"));
  // What readers of these files assume where they say nothing.
  vocabulary.add_bos = adds_bos(file, true);
  vocabulary.add_eos = file.boolean("tokenizer.ggml.add_eos_token").value_or(false);
  if (!vocabulary.bos && vocabulary.size() > 2) vocabulary.bos = 1;
  if (!vocabulary.eos && vocabulary.size() > 2) vocabulary.eos = 2;
  std::vector<float> scores;
  for (const double n : *numbers) scores.push_back(static_cast<float>(n));
  return make_score_tokenizer(std::move(vocabulary), std::move(scores), file.boolean("tokenizer.ggml.add_space_prefix").value_or(true));
}

std::unique_ptr<Tokenizer> load_ranks(const Gguf& file, Vocabulary vocabulary) {
  const auto merges = file.texts("tokenizer.ggml.merges");
  if (!merges) throw IoError(cat(file.name, ": tokenizer.ggml.merges is missing"));
  const std::string_view pre = file.text("tokenizer.ggml.pre").value_or("");
  const bool llama3 = find_pretokenizer(pre) == Pretokenizer::llama3;
  vocabulary.add_bos = adds_bos(file, llama3);
  vocabulary.add_eos = file.boolean("tokenizer.ggml.add_eos_token").value_or(false);
  return make_rank_tokenizer(std::move(vocabulary), *merges, pre, llama3);
}

}  // namespace

Tokenizer::Tokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {
  if (vocabulary_.add_bos && !vocabulary_.bos) throw IoError("the tokenizer asks for a token that begins a text, but names none");
  if (vocabulary_.add_eos && !vocabulary_.eos) throw IoError("the tokenizer asks for a token that ends a text, but names none");
  for (TokenId id = 0; id < vocabulary_.size(); ++id) {
    const std::string& text = vocabulary_.text(id);
    if (text.size() > kMaxTokenBytes) throw IoError(cat("token ", id, " has ", text.size(), " bytes, must be at most ", kMaxTokenBytes));
    if (text.empty()) continue;
    const TokenKind kind = vocabulary_.kind(id);
    if (kind == TokenKind::user_defined) user_defined_.add(text, id);
    if (kind == TokenKind::user_defined || is_hidden(kind)) all_special_.add(text, id);
  }
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<TokenId> out;
  if (options.add_special && vocabulary_.add_bos) out.push_back(*vocabulary_.bos);
  bool opening = true;
  for (const Fragment& part : (options.parse_special ? all_special_ : user_defined_).split(text)) {
    opening = opening || part.id != kNoToken;
    if (part.id != kNoToken) {
      out.push_back(part.id);
      continue;
    }
    encode_plain(part.text, opening, options.drop_unspellable, out);
    opening = false;
  }
  if (options.add_special && vocabulary_.add_eos) out.push_back(*vocabulary_.eos);
  return out;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool special) const {
  std::string out;
  bool opening = true;
  for (const TokenId id : ids) {
    if (id < 0 || id >= vocabulary_.size()) throw InvalidArgument(cat("token id ", id, ", must be 0 to ", vocabulary_.size() - 1));
    const TokenKind kind = vocabulary_.kind(id);
    if (is_hidden(kind) || kind == TokenKind::user_defined) {
      if (special || kind == TokenKind::user_defined) out += vocabulary_.text(id);
      opening = true;
      continue;
    }
    out += plain_text(id, opening);
    opening = false;
  }
  return out;
}

void Tokenizer::refuse_byte(unsigned char byte) {
  throw InvalidArgument(cat("the text holds byte ", static_cast<int>(byte), ", which no token of this vocabulary spells"));
}

std::unique_ptr<Tokenizer> load_tokenizer(const Gguf& file) {
  const auto model = file.text("tokenizer.ggml.model");
  if (!model) throw IoError(cat(file.name, ": tokenizer.ggml.model is missing"));
  if (*model != "llama" && *model != "gpt2")
    throw Unsupported(cat(file.name, ": tokenizer.ggml.model is ", printable(*model), ", must be llama (BPE by score) or gpt2 (byte-level BPE)"));
  Vocabulary vocabulary = read_vocabulary(file);
  try {
    return *model == "llama" ? load_scores(file, std::move(vocabulary)) : load_ranks(file, std::move(vocabulary));
  } catch (const IoError& e) {
    const std::string text = e.what();
    throw IoError(text.starts_with(file.name) ? text : cat(file.name, ": ", text));
  }
}

std::unique_ptr<Tokenizer> load_tokenizer(const WeightFile& file) {
  if (file.gguf() == nullptr) throw InvalidArgument(cat(file.path().string(), " carries no tokenizer, must be a GGUF file"));
  return load_tokenizer(*file.gguf());
}

}  // namespace kvatlas::models

// The first byte picks a tokenizer and whether special tokens are parsed; the rest is a text.
#include "models/tokenizer/tokenizer.hpp"

#include <array>

#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "tests/fuzz/targets.hpp"

namespace kvatlas::fuzz {

namespace {

struct All {
  std::array<std::unique_ptr<models::Tokenizer>, 7> tokenizers;

  All() {
    const std::string folder = KVATLAS_SOURCE_DIR "/tests/tokenizers/";
    const models::WeightFile rank = models::WeightFile::open(folder + "rank.gguf");
    tokenizers[0] = models::load_tokenizer(models::WeightFile::open(folder + "score.gguf"));
    tokenizers[1] = models::load_tokenizer(models::WeightFile::open(folder + "score_prefix.gguf"));
    tokenizers[2] = models::make_byte_tokenizer({}, std::nullopt);
    const std::array<const char*, 4> kinds{"gpt-2", "smollm", "llama-bpe", "qwen2"};
    for (std::size_t i = 0; i < kinds.size(); ++i)
      tokenizers[3 + i] = models::make_rank_tokenizer(models::read_vocabulary(*rank.gguf()), *rank.texts("tokenizer.ggml.merges"), kinds[i], i == 2);
  }
};

}  // namespace

void fuzz_tokenizer(std::span<const std::byte> data) {
  static const All all;
  if (data.empty()) return;
  const auto pick = static_cast<unsigned>(data[0]);
  const models::Tokenizer& tokenizer = *all.tokenizers[(pick & 127U) % 7];
  const bool special = pick >= 128;
  const std::string_view text = text_of(data.subspan(1));
  const std::vector<models::TokenId> ids = tokenizer.encode(text, {.add_special = false, .parse_special = special});
  require(tokenizer.decode(ids, special) == text, "a text comes back");
}

}  // namespace kvatlas::fuzz

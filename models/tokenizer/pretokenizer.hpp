// Cuts text into the pieces within which byte-level BPE merges: the published regular expressions, matched by hand.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace kvatlas::models {

enum class Pretokenizer {
  gpt2,    // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  smollm,  // every \p{N} by itself, gpt2 on what lies between
  llama3,  // (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
  qwen2    // the same with \p{N} in place of \p{N}{1,3}
};

/// By the name that GGUF files give in tokenizer.ggml.pre.
std::optional<Pretokenizer> find_pretokenizer(std::string_view name);
/// The names that find_pretokenizer knows, for errors.
std::string_view pretokenizer_names();

/// The pieces in order; together they are the text. A byte that is not UTF-8 counts as one character that is no letter, number or space.
std::vector<std::string_view> pretokenize(Pretokenizer kind, std::string_view text);

}  // namespace kvatlas::models

#include "models/tokenizer/tokenizer_json.hpp"

#include <algorithm>

#include "core/errors.hpp"
#include "tests/fuzz/targets.hpp"

namespace kvatlas::fuzz {

void fuzz_tokenizer_json(std::span<const std::byte> data) {
  try {
    const auto tokenizer = models::parse_tokenizer_json(text_of(data), "tokenizer.json");
    const std::string_view text = text_of(data.subspan(0, std::min<std::size_t>(data.size(), 200)));
    tokenizer->decode(tokenizer->encode(text, {.parse_special = true, .drop_unspellable = true}));
  } catch (const Error&) {
  }
}

}  // namespace kvatlas::fuzz

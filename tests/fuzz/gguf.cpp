// GGUF files: the container, its metadata, tokenizer, tensors, and the decoder that it describes.
#include "models/files/gguf.hpp"

#include <algorithm>

#include "core/errors.hpp"
#include "models/runtime/architecture.hpp"
#include "models/tokenizer/tokenizer.hpp"
#include "tests/fuzz/targets.hpp"

namespace kvatlas::fuzz {

namespace {

template <class Call>
void quietly(const Call& call) {
  try {
    call();
  } catch (const Error&) {
  }
}

void read_tensor(const models::TensorInfo& tensor) {
  constexpr std::int64_t kMost = 1 << 16;
  require(tensor.rows() >= 1 && tensor.columns() >= 1, "a GGUF tensor holds something");
  if (tensor.columns() > kMost) return;
  std::vector<float> row(static_cast<std::size_t>(tensor.columns()));
  models::dequantize(tensor, 0, 1, row);
  models::dequantize(tensor, tensor.rows() - 1, 1, row);
}

}  // namespace

void fuzz_gguf(std::span<const std::byte> data) {
  models::Gguf file;
  try {
    file = models::parse_gguf(data, "file");
  } catch (const Error&) {
    return;
  }
  for (const models::TensorInfo& tensor : file.tensors) read_tensor(tensor);
  for (const models::GgufValue& value : file.metadata) {
    quietly([&] { file.text(value.key); });
    quietly([&] { file.integer(value.key); });
    quietly([&] { file.number(value.key); });
    quietly([&] { file.boolean(value.key); });
    quietly([&] { file.texts(value.key); });
    quietly([&] { file.integers(value.key); });
    quietly([&] { file.numbers(value.key); });
  }
  quietly([&] {
    const models::Architecture a = models::architecture_of(file, file.tensors, "file");
    require(a.norm_eps > 0.0F && a.norm_eps <= 1.0F, "a norm's epsilon is positive");
  });
  quietly([&] {
    const auto tokenizer = models::load_tokenizer(file);
    const std::string_view text = text_of(data.subspan(0, std::min<std::size_t>(data.size(), 300)));
    const std::vector<models::TokenId> ids = tokenizer->encode(text, {.parse_special = true, .drop_unspellable = true});
    require(tokenizer->decode(ids).size() <= 5000 * (ids.size() + 1), "a token is at most 4096 bytes");
  });
}

}  // namespace kvatlas::fuzz

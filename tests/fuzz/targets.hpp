// Every reader of untrusted bytes, as a function of bytes. A target ends quietly for what is refused with one of our errors; whatever
// else happens (another exception, a fault, a value that breaks a promise) is a finding.
#pragma once

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace kvatlas::fuzz {

void fuzz_gguf(std::span<const std::byte> data);         // GGUF files, the tokenizers and decoders that they describe
void fuzz_safetensors(std::span<const std::byte> data);  // safetensors files and indices of shards
void fuzz_tokenizer(std::span<const std::byte> data);    // texts
void fuzz_tokenizer_json(std::span<const std::byte> data);
void fuzz_npy(std::span<const std::byte> data);
void fuzz_config(std::span<const std::byte> data);       // config.json of models
void fuzz_spec(std::span<const std::byte> data);         // sweep specs
void fuzz_cache(std::span<const std::byte> data);        // saved caches of every method

struct Target {
  const char* name;
  void (*run)(std::span<const std::byte>);
};

inline std::string_view text_of(std::span<const std::byte> data) { return {reinterpret_cast<const char*>(data.data()), data.size()}; }

/// A promise that a reader makes beyond refusing what is broken.
inline void require(bool kept, const char* promise) {
  if (!kept) throw std::logic_error(std::string("broken promise: ") + promise);
}

}  // namespace kvatlas::fuzz

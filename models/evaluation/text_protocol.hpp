// Text read through compressed caches, under the two protocols of the quality figures.
//   A  the prompt is prefilled and compressed; then every token is scored one by one through the compressed cache
//   B  the text comes in chunks and the cache is compressed after each; every token behind the first chunk is scored.
//      A method that compresses once, at the end of its first chunk, and keeps all later chunks whole fails there
// In A not a single scored prediction comes from the prompt's own pass: the first token that is fed belongs to the scored part.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "models/evaluation/lockstep.hpp"
#include "models/evaluation/metrics.hpp"

namespace kvatlas::models {

enum class Protocol : std::uint8_t { a, b };

struct TextOptions {
  Protocol protocol = Protocol::a;
  std::int64_t context = 1024;  // prompt of A; tokens of the whole text less `scored` of B
  std::int64_t scored = 768;    // A: tokens scored in a window; B: joins the context
  std::int64_t windows = 1;     // pieces of the text, one after another
  std::int64_t chunk = 512;     // of B
  std::optional<TokenId> begin{};  // opens every window where the model wants it
  std::function<void(const std::string&)> progress{};
};

/// What a text says about one method. The first of a run is `full`, the plain cache itself.
struct TextResult {
  std::string label;
  std::optional<std::string> failure;   // the sentence with which the method refused
  std::vector<TokenScore> scores;       // all windows, in order
  std::vector<double> attention_error;  // by layer: ||out - plain|| / ||plain|| of the scored steps, mean over windows
  Bytes stored{0}, dense{0};            // after the prompt (A) or the text (B), mean over windows
};

/// Tokens that a run reads; a shorter text is refused.
std::int64_t tokens_needed(const TextOptions& options);

/// throws   InvalidArgument for a text too short, or where the model's own logits are not finite
std::vector<TextResult> read_text(const Transformer& transformer, const CacheShape& shape, const std::vector<Candidate>& candidates,
                                  std::span<const TokenId> text, const TextOptions& options);

}  // namespace kvatlas::models

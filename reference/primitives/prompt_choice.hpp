// Which tokens of a prompt a large model is shown at all, chosen by the attention of a small one that has read the whole prompt.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/io/tensor.hpp"
#include "core/view.hpp"
#include "reference/primitives/pooling.hpp"
#include "reference/primitives/selection.hpp"

namespace kvatlas {

/// One layer of a draft, after RoPE: queries of the prompt's newest tokens and of the tokens it wrote behind it, keys of all of them.
struct DraftRows {
  View<const float> q;  // [q_heads, window + lookahead, dim]
  View<const float> k;  // [kv_heads, prompt + lookahead, dim]
};

struct PromptChoice {
  std::int64_t budget = 1024;  // tokens shown
  std::int64_t window = 64;    // newest tokens of the prompt: their queries score, and they are shown
  std::int64_t lookahead = 1;  // tokens that the draft wrote; their queries score
  int kernel = 32;             // tokens of one pooling window
  Pooling pooling = Pooling::max;
  bool largest = true;         // largest weight over heads, queries, layers and steps; else their sum
  int neighbours = 32;         // tokens around a chosen one that come with it; 0: none
  bool ramp = true;            // weights of window query i count i / (window - 1): the oldest not at all
  int first_layer = 8;         // of the draft that counts
};

/// Attention [prompt] of every token of the prompt. A query's softmax runs over all keys up to its own, in the order of attention.hpp; a
/// weight times its ramp (float32) goes to fixed point (num::to_mass), so no order matters; one conversion at the end.
std::vector<float> prompt_attention(std::span<const DraftRows> layers, const PromptChoice& how);

/// Token indices in falling order of score, `k` of them; of equal scores the lower index first.
std::vector<std::int64_t> ranked(std::span<const float> scores, std::int64_t k);

/// What is shown of `prompt` tokens, given tokens in falling order of score: the window, then every token of `order` with its neighbours
/// -(n - 1) / 2 ... n - 1 - (n - 1) / 2 by distance (of two the lower first, cut to the prompt), each token once, until the budget is full.
Slots shown_tokens(std::span<const std::int64_t> order, std::int64_t prompt, const PromptChoice& how);

/// A choice and the length of the prompt that it was made for.
struct ChosenPrompt {
  Slots shown;
  std::int64_t prompt = 0;
};

/// Attention, pooling (zeros before and behind), ranking, neighbours. A prompt within the budget is shown whole. The file holds
/// layer<l>.draft_queries [q_heads, min(window, prompt) + lookahead, dim] and layer<l>.draft_keys [kv_heads, prompt + lookahead, dim] of
/// the draft's layers from `first_layer` on, after RoPE.
/// throws InvalidArgument for a missing tensor or one of another size
ChosenPrompt choose_prompt(const TensorMap& file, std::string_view method, const PromptChoice& how);

}  // namespace kvatlas

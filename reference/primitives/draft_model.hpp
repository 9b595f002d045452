// Small models that draft for a large one: their sizes, and what their work costs. No draft runs here; its tokens or its attention
// arrive as inputs.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "core/ledger.hpp"
#include "core/plan.hpp"

namespace kvatlas {

enum class Draft : std::uint8_t { llama_3_2_1b, qwen2_5_0_5b, none };
inline constexpr std::array<std::string_view, 3> kDraftNames{"llama-3.2-1b", "qwen2.5-0.5b", "none"};

struct DraftSizes {
  int layers = 0, hidden = 0, ffn = 0, q_heads = 1, kv_heads = 1, head_dim = 0, vocabulary = 0;
};
DraftSizes sizes_of(Draft draft);  // `none`: no layers

/// Kernels of a draft that reads `prompt` tokens and then writes `steps`, one by one: weight products (read once for all sequences),
/// appends and attention. Its own cache is scratch of the prompt and in no ledger.
void add_draft(Plan& plan, Draft draft, Dtype dtype, const History& h, Tokens prompt, Tokens steps);

/// Window scores of the draft's layers from `first_layer` on by its newest `queries`, over `prompt` tokens.
void add_draft_scores(Plan& plan, Draft draft, Dtype dtype, const History& h, Tokens prompt, Tokens queries, int first_layer);

}  // namespace kvatlas

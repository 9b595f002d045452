// Sparse-dLLM's score: what a block that is being denoised sees, on average, in the tokens around it.
#pragma once

#include <cstdint>
#include <vector>

#include "core/layer_graph.hpp"
#include "reference/primitives/token_rows.hpp"

namespace kvatlas::methods::sparse_dllm_parts {

/// Slots [first, first + size) of the block.
struct Block {
  std::int64_t first = 0, size = 0;
};

/// The block in a text of `tokens`, with `behind` tokens after it; a short text gives up tokens behind, then those of the block.
Block block_of(std::int64_t tokens, std::int64_t size, std::int64_t behind);

/// Score of every slot outside the block, in their order, the block left out. Mean query of each head: ascending in float64, one rounding;
/// lane dots with its keys; sum over the heads of a group, then over groups, in float64, / q_heads, one rounding; then the maximum over
/// `kernel` neighbours.
/// q      [q_heads, block.size, k_dim] after RoPE
/// keys   of `rows`, after RoPE
std::vector<float> importance(const LayerClass& c, View<const float> q, const TokenRows& rows, const Block& block, int kernel);

}  // namespace kvatlas::methods::sparse_dllm_parts

// What KVzip measures and chooses: how well a repetition of a piece of the prompt is served by each of its tokens, and which pairs of
// head and token stay in the whole model.
#pragma once

#include <array>
#include <string_view>
#include <vector>

#include "reference/cache.hpp"
#include "reference/primitives/selection.hpp"

namespace kvatlas::methods::kvzip_parts {

/// Slots [first, end) of a prompt, which one repetition scores; its queries see the first `sinks` slots, these and themselves.
struct Piece {
  std::int64_t sinks = 0, first = 0, end = 0;
  std::int64_t size() const { return end - first; }
};

/// The slots behind the sinks in pieces of `chunk`, the last one shorter.
std::vector<Piece> pieces_of(std::int64_t rows, std::int64_t sinks, std::int64_t chunk);

/// Largest softmax weight that any query of a repetition, of any query head of the group, pays each slot of its piece. The softmax runs over
/// sinks, piece and the repetition's own keys, as `mask` lets it, in this order.
/// q        [q_heads, m, k_dim] after RoPE, all heads of the layer
/// own      [m, k_dim] keys of the repetition after RoPE, of `kv_head`
/// k        [rows, k_dim] keys of the prompt after RoPE, of `kv_head`
/// returns  [piece.size()], in [0, 1]
std::vector<float> recall_scores(const LayerClass& c, int kv_head, View<const float> q, View<const float> own, View<const float> k, const Piece& piece,
                                 const AttentionMask& mask);

enum class Selection : std::uint8_t { global, layer, head, released };
inline constexpr std::array<std::string_view, 4> kSelectionNames{"global", "layer", "head", "released"};

/// The share of n, cut to a whole number in float64.
std::int64_t share_of(std::int64_t n, double keep_fraction);

/// Tokens that stay, ascending, by layer and head: the share of all pairs with the best scores, of equal ones the lower layer, head, token;
/// or the same within each layer or head. `released` keeps what lies strictly above the last of that share: one pair less, and no pair
/// that ties with it.
/// scores   [layers][heads][tokens]
std::vector<std::vector<Slots>> choose(const std::vector<std::vector<std::vector<float>>>& scores, double keep_fraction, Selection selection);

}  // namespace kvatlas::methods::kvzip_parts

// Acceptance rules of speculative decoding and the formulas of its speed: what a verified tree of drafted tokens emits,
// how many tokens a round yields, how much faster that is.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/philox.hpp"
#include "reference/faces.hpp"

namespace kvatlas {

/// Tokens of one round of a chain of `drafted` tokens, each accepted with chance `acceptance`: 1 + a + ... + a^drafted.
/// source   Leviathan et al., arXiv 2211.17192, eq. 1
double expected_tokens(double acceptance, int drafted);
/// The same with a rate for each place of the chain: 1 + a_1 + a_1 a_2 + ...
double expected_tokens(std::span<const double> acceptances);

/// Speed over plain decoding: tokens / (drafted * draft_cost + verify_cost), costs in units of one plain step.
double speculation_speedup(double tokens, int drafted, double draft_cost, double verify_cost);
/// The chain length in 1 .. 64 with the highest speed-up (the shortest of equals) at a constant verify_cost.
int best_draft_length(double acceptance, double draft_cost, double verify_cost);

/// Partial rounds between two full ones: a partial round needs the `filled` tokens accepted since the last full round to be
/// at most `room`; a full round leaves tau_full there, each partial one adds tau_partial.
int partial_rounds(double tau_full, double tau_partial, std::int64_t room);

/// Chance that one drafted token is accepted: the sum of min(p, q).
double acceptance_of(std::span<const double> p, std::span<const double> q);

/// Index of the largest logit, the lowest of equals. throws InvalidArgument for NaN or nothing
TokenId argmax(std::span<const float> logits);

/// softmax(logits / temperature) in float64: exponentials of the distance to the largest logit, summed in ascending index.
std::vector<double> probabilities(std::span<const float> logits, float temperature);

/// throws InvalidArgument unless the tree has at most `nodes` nodes on at most `depth` levels, parents before children,
/// known tokens, and distributions that give the drafted token a chance
void check_tree(const DraftTree& tree, int nodes, int depth, int vocabulary);

/// Level of each node: 1 for a child of the last accepted token.
std::vector<int> levels_of(const DraftTree& tree);

/// What a verified tree comes to: accepted nodes from the root down, and the token behind them.
struct Verdict {
  std::vector<int> path;
  TokenId next = 0;
};

/// Greedy: follows the child that is the argmax while there is one; of equal children the first.
/// logits   [1 + nodes, vocabulary]; row 0 belongs to the last accepted token, row 1 + i to node i
Verdict accept_greedy(const DraftTree& tree, View<const float> logits);

/// Rejection sampling. Children of the accepted node are tried in order: x is accepted if u q(x) < p(x), else p becomes
/// max(p - q, 0), normalised; when none is left the next token is drawn from p. A node without a distribution was
/// chosen, not drawn: its q is 1 at x. Emitted tokens then follow p exactly, for chains and trees.
/// Number i of `stream` is the i-th uniform of this round. A draw takes the first symbol at which the running sum exceeds u.
Verdict accept_sampled(const DraftTree& tree, View<const float> logits, float temperature, const RandomStream& stream);

/// Mask of `missing` tokens of the text, the last accepted token and the tree: [missing + 1 + nodes] squared.
std::vector<std::uint8_t> verify_mask(const DraftTree& tree, std::int64_t missing);

}  // namespace kvatlas

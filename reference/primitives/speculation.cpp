#include "reference/primitives/speculation.hpp"

#include <algorithm>
#include <cmath>

#include "core/arith64.hpp"
#include "core/errors.hpp"

namespace kvatlas {

double expected_tokens(double acceptance, int drafted) {
  double tokens = 1.0, chance = 1.0;
  for (int i = 0; i < drafted; ++i) tokens += chance *= acceptance;
  return tokens;
}

double expected_tokens(std::span<const double> acceptances) {
  double tokens = 1.0, chance = 1.0;
  for (const double a : acceptances) tokens += chance *= a;
  return tokens;
}

double speculation_speedup(double tokens, int drafted, double draft_cost, double verify_cost) {
  return tokens / (drafted * draft_cost + verify_cost);
}

int best_draft_length(double acceptance, double draft_cost, double verify_cost) {
  int best = 1;
  double fastest = 0.0;
  for (int drafted = 1; drafted <= 64; ++drafted) {
    const double speed = speculation_speedup(expected_tokens(acceptance, drafted), drafted, draft_cost, verify_cost);
    if (speed > fastest) {
      fastest = speed;
      best = drafted;
    }
  }
  return best;
}

int partial_rounds(double tau_full, double tau_partial, std::int64_t room) {
  const double left = static_cast<double>(room) - tau_full;
  return left < 0 ? 0 : static_cast<int>(std::floor(left / tau_partial)) + 1;
}

double acceptance_of(std::span<const double> p, std::span<const double> q) {
  double sum = 0.0;
  for (std::size_t i = 0; i < p.size(); ++i) sum += std::min(p[i], q[i]);
  return sum;
}

TokenId argmax(std::span<const float> logits) {
  if (logits.empty()) throw InvalidArgument("logits are empty, must hold one for each token of the vocabulary");
  std::size_t best = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) throw InvalidArgument(cat("logits[", i, "] is NaN, must be a number"));
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<TokenId>(best);
}

std::vector<double> probabilities(std::span<const float> logits, float temperature) {
  const double top = static_cast<double>(logits[static_cast<std::size_t>(argmax(logits))]);
  std::vector<double> p;
  double sum = 0.0;
  for (const float x : logits) {
    p.push_back(num::exp((static_cast<double>(x) - top) / static_cast<double>(temperature)));
    sum += p.back();
  }
  for (double& f : p) f /= sum;
  return p;
}

std::vector<int> levels_of(const DraftTree& tree) {
  std::vector<int> levels;
  for (const int parent : tree.parent) levels.push_back(parent < 0 ? 1 : levels[static_cast<std::size_t>(parent)] + 1);
  return levels;
}

void check_tree(const DraftTree& tree, int nodes, int depth, int vocabulary) {
  const std::size_t n = tree.tokens.size();
  if (n > static_cast<std::size_t>(nodes)) throw InvalidArgument(cat("draft has ", n, " nodes, must have at most tree_size (", nodes, ")"));
  if (tree.parent.size() != n) throw InvalidArgument(cat("draft has ", tree.parent.size(), " parents, must have one for each of ", n, " nodes"));
  if (!tree.probability.empty() && tree.probability.size() != n)
    throw InvalidArgument(cat("draft has ", tree.probability.size(), " distributions, must have one for each of ", n, " nodes or none"));
  for (std::size_t i = 0; i < n; ++i) {
    if (tree.parent[i] < -1 || tree.parent[i] >= static_cast<int>(i))
      throw InvalidArgument(cat("draft parent[", i, "] is ", tree.parent[i], ", must be -1 or an earlier node"));
    if (tree.tokens[i] < 0 || tree.tokens[i] >= vocabulary)
      throw InvalidArgument(cat("draft token[", i, "] is ", tree.tokens[i], ", must be below the vocabulary (", vocabulary, ")"));
    if (tree.probability.empty() || tree.probability[i].empty()) continue;
    const auto& q = tree.probability[i];
    if (q.size() != static_cast<std::size_t>(vocabulary))
      throw InvalidArgument(cat("draft probability[", i, "] has ", q.size(), " entries, must have the vocabulary's (", vocabulary, ")"));
    for (const float f : q)
      if (!(f >= 0.0F && f <= 1.0F)) throw InvalidArgument(cat("draft probability[", i, "] holds ", f, ", must be between 0 and 1"));
    if (!(q[static_cast<std::size_t>(tree.tokens[i])] > 0.0F))
      throw InvalidArgument(cat("draft probability[", i, "] gives the drafted token no chance, must be above 0"));
  }
  const std::vector<int> levels = levels_of(tree);
  for (std::size_t i = 0; i < n; ++i)
    if (levels[i] > depth) throw InvalidArgument(cat("draft node ", i, " is on level ", levels[i], ", must be on at most depth (", depth, ")"));
}

Verdict accept_greedy(const DraftTree& tree, View<const float> logits) {
  Verdict verdict;
  for (int node = -1;;) {
    verdict.next = argmax(logits.row(node + 1));
    int found = -1;
    for (int child = node + 1; child < static_cast<int>(tree.tokens.size()) && found < 0; ++child)
      if (tree.parent[static_cast<std::size_t>(child)] == node && tree.tokens[static_cast<std::size_t>(child)] == verdict.next) found = child;
    if (found < 0) return verdict;
    verdict.path.push_back(node = found);
  }
}

namespace {

/// First symbol at which the running sum exceeds u times the whole; the last one with a chance if rounding leaves none.
TokenId draw(std::span<const double> p, double u) {
  double total = 0.0, sum = 0.0;
  for (const double f : p) total += f;
  std::size_t last = 0;
  for (std::size_t x = 0; x < p.size(); ++x) {
    if (p[x] <= 0) continue;
    last = x;
    if ((sum += p[x]) > u * total) break;
  }
  return static_cast<TokenId>(last);
}

/// max(p - q, 0), normalised. Where nothing is left p and q agree but for rounding, and p stays.
void take_away(std::vector<double>& p, const DraftTree& tree, std::size_t node) {
  std::vector<double> left = p;
  double sum = 0.0;
  const bool chosen = tree.probability.empty() || tree.probability[node].empty();
  for (std::size_t x = 0; x < p.size(); ++x) {
    const double q = chosen ? (static_cast<TokenId>(x) == tree.tokens[node] ? 1.0 : 0.0) : static_cast<double>(tree.probability[node][x]);
    left[x] = std::max(p[x] - q, 0.0);
    sum += left[x];
  }
  if (!(sum > 0)) return;
  for (std::size_t x = 0; x < p.size(); ++x) p[x] = left[x] / sum;
}

}  // namespace

Verdict accept_sampled(const DraftTree& tree, View<const float> logits, float temperature, const RandomStream& stream) {
  Verdict verdict;
  std::uint64_t drawn = 0;
  const auto uniform = [&] { return static_cast<double>(random_uniform(stream, drawn++)); };
  for (int node = -1;;) {
    std::vector<double> p = probabilities(logits.row(node + 1), temperature);
    int accepted = -1;
    for (int child = node + 1; child < static_cast<int>(tree.tokens.size()) && accepted < 0; ++child) {
      const auto c = static_cast<std::size_t>(child);
      if (tree.parent[c] != node) continue;
      const auto x = static_cast<std::size_t>(tree.tokens[c]);
      const double q = tree.probability.empty() || tree.probability[c].empty() ? 1.0 : static_cast<double>(tree.probability[c][x]);
      if (uniform() * q < p[x]) {
        accepted = child;
      } else {
        take_away(p, tree, c);
      }
    }
    if (accepted < 0) {
      verdict.next = draw(p, uniform());
      return verdict;
    }
    verdict.path.push_back(node = accepted);
  }
}

std::vector<std::uint8_t> verify_mask(const DraftTree& tree, std::int64_t missing) {
  const auto first = static_cast<std::size_t>(missing) + 1, n = first + tree.tokens.size();
  std::vector<std::uint8_t> mask(n * n, 0);
  for (std::size_t i = 0; i < n; ++i) {
    mask[i * n + i] = 1;
    if (i < first) {
      std::fill_n(mask.begin() + static_cast<std::ptrdiff_t>(i * n), i, std::uint8_t{1});
      continue;
    }
    const int parent = tree.parent[i - first];
    const std::size_t above = parent < 0 ? first - 1 : first + static_cast<std::size_t>(parent);
    for (std::size_t j = 0; j <= above; ++j) mask[i * n + j] |= mask[above * n + j];
  }
  return mask;
}

}  // namespace kvatlas

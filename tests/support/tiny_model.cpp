#include "tests/support/tiny_model.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/arith.hpp"
#include "reference/primitives/speculation.hpp"
#include "reference/registry.hpp"

namespace kvatlas::test {

namespace {

constexpr std::int64_t kHidden = 24;

struct Weights {
  struct Layer {
    Array q, k, v, o;  // [outputs, inputs]
  };
  Array embedding;  // [vocabulary, hidden]
  std::vector<Layer> layers;
};

Array random_matrix(Random& random, std::int64_t rows, std::int64_t cols) {
  Array a({rows, cols});
  const float scale = 1.0F / std::sqrt(static_cast<float>(cols));
  for (float& f : a.values()) f = random.normal() * scale;
  return a;
}

/// out = w x, one lane-tree product an output.
void multiply(const Array& w, std::span<const float> x, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = num::lane_dot(w.view().row(static_cast<std::int64_t>(i)), x);
}

void normalise(std::span<float> x) {
  const float mean = num::lane_dot(x, x) / static_cast<float>(x.size());
  const float scale = 1.0F / std::sqrt(mean + 1e-6F);
  for (float& f : x) f *= scale;
}

}  // namespace

TargetModel tiny_model(const CacheShape& shape, int vocabulary, std::uint64_t seed, float sharpness, LogitLog* log) {
  auto weights = std::make_shared<Weights>();
  Random random(seed);
  weights->embedding = random_matrix(random, vocabulary, kHidden);
  const LayerClass c = shape.classes.front();
  for (int l = 0; l < c.count(); ++l)
    weights->layers.push_back({random_matrix(random, c.q_heads * c.k_dim, kHidden), random_matrix(random, c.kv_heads * c.k_dim, kHidden),
                               random_matrix(random, c.kv_heads * c.v_dim, kHidden), random_matrix(random, kHidden, c.q_heads * c.v_dim)});
  const auto forward = [weights, c, sharpness, log](std::span<const TokenId> tokens, View<const std::int64_t> positions,
                                                    const AttentionMask& mask, KvCache& cache, View<float> logits) {
    const auto n = static_cast<std::int64_t>(tokens.size());
    Array x({n, kHidden});
    for (std::int64_t i = 0; i < n; ++i)
      std::ranges::copy(weights->embedding.view().row(tokens[static_cast<std::size_t>(i)]), x.view().row(i).begin());
    for (int l = 0; l < c.count(); ++l) {
      const Weights::Layer& w = weights->layers[static_cast<std::size_t>(l)];
      Array q({c.q_heads, n, c.k_dim}), k({c.kv_heads, n, c.k_dim}), v({c.kv_heads, n, c.v_dim}), out({c.q_heads, n, c.v_dim});
      const auto project = [&](const Array& matrix, std::int64_t token, Array& to, int heads, int dim, float gain) {
        std::vector<float> in(x.view().row(token).begin(), x.view().row(token).end()), flat(static_cast<std::size_t>(heads * dim));
        normalise(in);
        multiply(matrix, in, flat);
        for (int h = 0; h < heads; ++h)
          for (int d = 0; d < dim; ++d) to.view()(h, token, d) = gain * flat[static_cast<std::size_t>(h * dim + d)];
      };
      for (std::int64_t i = 0; i < n; ++i) {
        project(w.q, i, q, c.q_heads, c.k_dim, 3.0F);
        project(w.k, i, k, c.kv_heads, c.k_dim, 1.0F);
        project(w.v, i, v, c.kv_heads, c.v_dim, 1.0F);
      }
      cache.forward(c.layers[static_cast<std::size_t>(l)], {.q = q.view(), .k = k.view(), .v = v.view(), .positions = positions, .mask = mask}, out.view());
      std::vector<float> flat(static_cast<std::size_t>(c.q_heads * c.v_dim)), change(kHidden);
      for (std::int64_t i = 0; i < n; ++i) {
        for (int h = 0; h < c.q_heads; ++h) std::ranges::copy(out.view().row(h, i), flat.begin() + h * c.v_dim);
        multiply(w.o, flat, change);
        for (std::size_t d = 0; d < change.size(); ++d) x.view().row(i)[d] += 2.0F * change[d];
      }
    }
    for (std::int64_t i = 0; i < n; ++i) {
      normalise(x.view().row(i));
      multiply(weights->embedding, x.view().row(i), logits.row(i));
      for (float& f : logits.row(i)) {
        f *= sharpness;
        if (log != nullptr) log->push_back(std::bit_cast<std::uint32_t>(f));
      }
    }
  };
  return {.shape = shape, .vocabulary = vocabulary, .forward = forward};
}

DraftModel tiny_draft(const TargetModel& target, const TinyDraft& how) {
  struct State {
    std::unique_ptr<KvCache> cache;
    std::vector<TokenId> seen;
  };
  auto state = std::make_shared<State>();
  state->cache = find_method("full").open({}, target.shape, {});
  const auto propose = [target, how, state](std::span<const TokenId> context, int nodes) {
    Random random(how.seed * 7919 + context.size());
    const auto feed = [&](std::span<const TokenId> tokens) {
      std::vector<std::int64_t> positions;
      for (std::size_t i = 0; i < tokens.size(); ++i) positions.push_back(static_cast<std::int64_t>(state->seen.size() + i));
      const auto n = static_cast<std::int64_t>(tokens.size());
      Array logits({n, target.vocabulary});
      target.forward(tokens, {positions.data(), {n}}, {}, *state->cache, logits.view());
      state->seen.insert(state->seen.end(), tokens.begin(), tokens.end());
      const auto row = logits.view().row(n - 1);
      return std::vector<float>(row.begin(), row.end());
    };
    const auto back_to = [&](std::size_t length) {
      state->seen.resize(length);
      state->cache->crop(Tokens(static_cast<std::int64_t>(length)));
    };
    std::size_t common = 0;
    while (common < state->seen.size() && common + 1 < context.size() && state->seen[common] == context[common]) ++common;
    back_to(common);
    std::vector<float> logits = feed(context.subspan(common));
    DraftTree tree;
    int parent = -1;
    for (int level = 0; level < how.depth; ++level) {
      const int first = static_cast<int>(tree.tokens.size());
      for (int w = 0; w < how.width && static_cast<int>(tree.tokens.size()) < nodes; ++w) {
        TokenId token = w > 0 || (how.one_in > 0 && random.below(how.one_in) == 0) ? static_cast<TokenId>(random.below(target.vocabulary)) : argmax(logits);
        std::vector<float> q;
        if (how.sampled) {
          for (const double p : probabilities(logits, 1.5F)) q.push_back(static_cast<float>(p));
          double u = static_cast<double>(random.below(1 << 20)) / (1 << 20);
          token = 0;
          while (token + 1 < target.vocabulary && (u -= static_cast<double>(q[static_cast<std::size_t>(token)])) >= 0) ++token;
        }
        tree.tokens.push_back(token);
        tree.parent.push_back(parent);
        if (how.sampled) tree.probability.push_back(std::move(q));
      }
      if (first == static_cast<int>(tree.tokens.size())) break;
      parent = first;
      logits = feed({&tree.tokens[static_cast<std::size_t>(first)], 1});
    }
    back_to(context.size());
    return tree;
  };
  return {.propose = propose};
}

std::vector<TokenId> decode_greedily(const TargetModel& target, KvCache& cache, const std::vector<TokenId>& prompt, std::int64_t count) {
  std::vector<TokenId> text;
  TokenId next = 0;
  const auto feed = [&](std::span<const TokenId> tokens, std::int64_t first) {
    std::vector<std::int64_t> positions;
    for (std::size_t i = 0; i < tokens.size(); ++i) positions.push_back(first + static_cast<std::int64_t>(i));
    const auto n = static_cast<std::int64_t>(tokens.size());
    Array logits({n, target.vocabulary});
    target.forward(tokens, {positions.data(), {n}}, {}, cache, logits.view());
    next = argmax(logits.view().row(n - 1));
  };
  feed(prompt, 0);
  cache.end_prefill();
  while (static_cast<std::int64_t>(text.size()) < count) {
    text.push_back(next);
    feed({&text.back(), 1}, static_cast<std::int64_t>(prompt.size() + text.size()) - 1);
  }
  return text;
}

std::vector<TokenId> random_prompt(std::int64_t tokens, int vocabulary, std::uint64_t seed) {
  Random random(seed);
  std::vector<TokenId> prompt;
  for (std::int64_t i = 0; i < tokens; ++i) prompt.push_back(static_cast<TokenId>(random.below(vocabulary)));
  return prompt;
}

}  // namespace kvatlas::test

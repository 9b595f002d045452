#include "reference/primitives/prompt_choice.hpp"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/parallel.hpp"
#include "reference/primitives/attention.hpp"
#include "reference/primitives/trained.hpp"

namespace kvatlas {

namespace {

/// What the queries of one head add, or their largest weights.
std::vector<std::uint64_t> head_masses(const DraftRows& rows, std::int64_t head, std::int64_t prompt, std::int64_t window, const PromptChoice& how) {
  const View<const float> keys = rows.k[head / (rows.q.dim(0) / rows.k.dim(0))];
  const float scale = logit_scale({.k_dim = static_cast<int>(rows.q.dim(2))});
  std::vector<std::uint64_t> masses(static_cast<std::size_t>(prompt));
  std::vector<float> x, p;
  for (std::int64_t i = how.ramp && window > 1 ? 1 : 0; i < rows.q.dim(1); ++i) {
    const std::int64_t seen = prompt - window + i + 1;
    x.resize(static_cast<std::size_t>(seen));
    p.resize(x.size());
    logits(rows.q.row(head, i), keys.slice(0, 0, seen), scale, x);
    softmax_weights(x, softmax_part(x, View<const float>(nullptr, {seen, 0})), p);
    const float ramp = how.ramp && window > 1 && i < window ? static_cast<float>(i) / static_cast<float>(window - 1) : 1.0F;
    for (std::size_t t = 0; t < std::min(masses.size(), p.size()); ++t) {
      const std::uint64_t mass = num::to_mass(p[t] * ramp);
      masses[t] = how.largest ? std::max(masses[t], mass) : masses[t] + mass;
    }
  }
  return masses;
}

}  // namespace

std::vector<float> prompt_attention(std::span<const DraftRows> layers, const PromptChoice& how) {
  KV_ASSERT(!layers.empty(), "a draft has layers");
  const std::int64_t prompt = layers.front().k.dim(1) - how.lookahead, window = layers.front().q.dim(1) - how.lookahead;
  std::vector<std::uint64_t> total(static_cast<std::size_t>(prompt));
  for (const DraftRows& rows : layers) {
    std::vector<std::vector<std::uint64_t>> heads(static_cast<std::size_t>(rows.q.dim(0)));
    parallel_for(rows.q.dim(0), [&](std::int64_t h) { heads[static_cast<std::size_t>(h)] = head_masses(rows, h, prompt, window, how); });
    for (const auto& masses : heads)
      for (std::size_t t = 0; t < total.size(); ++t) total[t] = how.largest ? std::max(total[t], masses[t]) : total[t] + masses[t];
  }
  std::vector<float> attention;
  for (const std::uint64_t mass : total) attention.push_back(num::from_mass(mass));
  return attention;
}

std::vector<std::int64_t> ranked(std::span<const float> scores, std::int64_t k) {
  std::vector<std::int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](std::int64_t a, std::int64_t b) { return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)]; });
  order.resize(static_cast<std::size_t>(std::min<std::int64_t>(k, static_cast<std::int64_t>(order.size()))));
  return order;
}

Slots shown_tokens(std::span<const std::int64_t> order, std::int64_t prompt, const PromptChoice& how) {
  std::vector<std::int64_t> around{0};
  const std::int64_t n = how.neighbours, low = -(n - 1) / 2, high = n - 1 - (n - 1) / 2;
  for (std::int64_t d = 1; d <= high; ++d) {  // of an even number one more lies behind
    if (-d >= low) around.push_back(-d);
    around.push_back(d);
  }
  std::vector<std::uint8_t> taken(static_cast<std::size_t>(prompt));
  std::int64_t left = std::min(how.budget, prompt);
  const auto take = [&](std::int64_t t) {
    auto& flag = taken[static_cast<std::size_t>(std::clamp<std::int64_t>(t, 0, prompt - 1))];
    if (flag != 0 || left == 0) return;
    flag = 1;
    --left;
  };
  for (std::int64_t t = std::max<std::int64_t>(0, prompt - how.window); t < prompt; ++t) take(t);
  for (const std::int64_t t : order)
    for (const std::int64_t d : around) take(t + d);
  Slots shown;
  for (std::int64_t t = 0; t < prompt; ++t)
    if (taken[static_cast<std::size_t>(t)] != 0) shown.push_back(t);
  return shown;
}

ChosenPrompt choose_prompt(const TensorMap& file, std::string_view method, const PromptChoice& how) {
  std::vector<DraftRows> layers;
  for (int layer = how.first_layer; layer == how.first_layer || file.contains(trained_name(layer, "draft_keys")); ++layer) {
    const NamedTensor& k = trained_tensor(file, layer, "draft_keys", {0, 0, 0});
    const NamedTensor& q = trained_tensor(file, layer, "draft_queries", {0, 0, k.dims[2]});
    const std::int64_t prompt = k.dims[1] - how.lookahead;
    if (prompt < 1 || (!layers.empty() && k.dims[1] != layers.front().k.dim(1)))
      throw InvalidArgument(cat(method, ": ", trained_name(layer, "draft_keys"), " has ", k.dims[1], " tokens, must have ", how.lookahead,
                                " behind those of the prompt, as many in every layer"));
    if (const std::int64_t queries = std::min(how.window, prompt) + how.lookahead; q.dims[1] != queries || q.dims[0] % k.dims[0] != 0)
      throw InvalidArgument(cat(method, ": ", trained_name(layer, "draft_queries"), " has ", q.dims[0], " heads of ", q.dims[1], " queries, must have a multiple of ",
                                k.dims[0], " heads of ", queries, " queries"));
    layers.push_back({.q = {q.values.data(), {q.dims[0], q.dims[1], q.dims[2]}}, .k = {k.values.data(), {k.dims[0], k.dims[1], k.dims[2]}}});
  }
  const std::int64_t prompt = layers.front().k.dim(1) - how.lookahead;
  if (prompt <= how.budget) return {.shown = ends(prompt, prompt, 0), .prompt = prompt};
  const std::vector<float> pooled = pool_zero_padded(prompt_attention(layers, how), how.pooling, how.kernel);
  return {.shown = shown_tokens(ranked(pooled, how.budget), prompt, how), .prompt = prompt};
}

}  // namespace kvatlas

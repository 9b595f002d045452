#include "reference/primitives/eviction/observed.hpp"

#include <algorithm>
#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/kernels/select.hpp"
#include "core/parallel.hpp"
#include "reference/primitives/attention.hpp"
#include "reference/primitives/eviction/scorers.hpp"
#include "reference/primitives/pooling.hpp"

namespace kvatlas::eviction {

void observe_mass(Rule& rule) {
  rule.words.push_back({"mass", 8});
  rule.observe = [](const Seen& seen) {
    for (std::size_t t = 0; t < seen.weights.size(); ++t)
      seen.rows.words(0).add(seen.head, seen.first_slot + static_cast<std::int64_t>(t), num::to_mass(seen.weights[t]));
  };
}

Scorer mean_observed() {
  return {.score = [](const Scene& scene) {
            Scores scores(static_cast<std::size_t>(scene.rows.heads()));
            const int group = scene.c.q_heads / scene.rows.heads();
            for (int h = 0; h < scene.rows.heads(); ++h) {
              const std::vector<std::uint64_t> mass = scene.rows.words(0).all(h);
              for (std::size_t t = 0; t < mass.size(); ++t)
                scores[static_cast<std::size_t>(h)].push_back(num::from_mass(mass[t]) / static_cast<float>(mass.size() - t) / static_cast<float>(group));
            }
            return scores;
          },
          .charge = [](const Charge& to) {
            to.plan.add(kernels::MassUpdate{.sequences = to.history.sequences, .kv_heads = to.c.kv_heads, .q_per_kv = to.c.q_per_kv(),
                                            .tokens = to.rows, .state_bytes = 8}
                            .call(to.launches));
          }};
}

namespace {

/// Mass of `keys` [n, dim] from the queries [n, dim] of their chunk; `zeros` more keys and queries of zero take part.
std::vector<std::uint64_t> chunk_mass(const std::vector<std::span<const float>>& queries, View<const float> keys, float scale, std::int64_t zeros) {
  const std::int64_t n = keys.dim(0);
  std::vector<std::uint64_t> mass(static_cast<std::size_t>(n), 0);
  std::vector<float> x(static_cast<std::size_t>(n + zeros), 0.0F), p(x.size());
  const auto add = [&](std::uint64_t times) {
    softmax_weights(x, softmax_part(x, View<const float>(nullptr, {n + zeros, 0})), p);
    for (std::size_t t = 0; t < mass.size(); ++t) mass[t] += num::to_mass(p[t]) * times;
  };
  for (const auto& q : queries) {
    logits(q, keys, scale, std::span(x).first(mass.size()));
    add(1);
  }
  std::ranges::fill(x, 0.0F);
  if (zeros > 0) add(static_cast<std::uint64_t>(zeros));
  return mass;
}

std::vector<float> chunk_scores(const ChunkAttention& how, const Scene& scene, int owner) {
  const Array keys = scene.rows.keys(owner), values = scene.rows.values(owner);
  const std::int64_t rows = keys.dims()[0];
  const int group = scene.c.q_heads / scene.rows.heads();
  LayerClass c = scene.c;
  if (!how.scaled) c.score_scale = 1.0;
  const float scale = logit_scale(c);
  std::vector<float> weight(static_cast<std::size_t>(rows)), sum(weight.size(), 0.0F);
  for (std::int64_t t = 0; t < rows; ++t) weight[static_cast<std::size_t>(t)] = std::sqrt(num::lane_dot(values.view().row(t), values.view().row(t)));
  for (int g = 0; g < group; ++g) {  // query heads in ascending order
    std::vector<float> head;
    for (std::int64_t first = 0; first < rows; first += how.chunk) {
      const std::int64_t n = std::min(how.chunk, rows - first);
      std::vector<std::span<const float>> queries;
      for (std::int64_t i = 0; i < n; ++i) queries.push_back(scene.queries.row(owner * group + g, first + i));
      for (const std::uint64_t m : chunk_mass(queries, keys.view().slice(0, first, n), scale, how.padded ? how.chunk - n : 0))
        head.push_back(num::from_mass(m) * weight[head.size()]);
    }
    const std::vector<float> pooled = pool(head, Pooling::avg, how.kernel);
    for (std::size_t t = 0; t < sum.size(); ++t) sum[t] += pooled[t];
  }
  for (float& s : sum) s /= static_cast<float>(group);
  return sum;
}

}  // namespace

Scorer chunk_attention(const ChunkAttention& how) {
  return {.score = [how](const Scene& scene) {
            KV_ASSERT(scene.queries.dim(1) == scene.rows.count(0), "all queries of the prompt are at hand");
            Scores scores(static_cast<std::size_t>(scene.rows.heads()));
            parallel_for(scene.rows.heads(), [&](std::int64_t h) { scores[static_cast<std::size_t>(h)] = chunk_scores(how, scene, static_cast<int>(h)); });
            return scores;
          },
          .charge = [how](const Charge& to) {
            const Tokens chunk = std::min(to.rows, Tokens(how.chunk));
            const auto chunks = static_cast<double>(ceil_div(to.rows.value, chunk.value));
            charge_window({to.plan, to.c, to.dtype, to.history, chunk, to.prompt, to.launches * chunks}, chunk);
            charge_rows(to, to.c.v_dim);
          },
          .window = Tokens(std::int64_t{1} << 30)};
}

}  // namespace kvatlas::eviction

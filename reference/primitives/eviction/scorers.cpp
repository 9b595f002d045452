#include "reference/primitives/eviction/scorers.hpp"

#include "core/errors.hpp"
#include "core/kernels/select.hpp"
#include "reference/primitives/attention.hpp"
#include "reference/primitives/eviction/per_head.hpp"

namespace kvatlas::eviction {

void charge_window(const Charge& to, Tokens window) {
  to.plan.add(kernels::WindowScore{.sequences = to.history.sequences, .kv_heads = to.c.kv_heads, .q_per_kv = to.c.q_per_kv(),
                                   .k_dim = to.c.k_dim, .dtype = to.dtype, .context = to.rows, .observation_window = window}
                  .call(to.launches));
}

void charge_rows(const Charge& to, int dim, int passes) {
  to.plan.add(kernels::LabelScore{.sequences = to.history.sequences, .heads = to.c.kv_heads, .q_per_head = 1, .channels = dim,
                                  .label_bits = std::int64_t{8} * dim * bytes_of(to.dtype), .tokens = to.rows}
                  .call(to.launches * passes));
}

void charge_last(const Charge& to) {
  if (to.prompt) return charge_window(to, 1_tok);
  to.plan.add(kernels::MassUpdate{.sequences = to.history.sequences, .kv_heads = to.c.kv_heads, .q_per_kv = to.c.q_per_kv(), .tokens = to.rows, .state_bytes = 4}
                  .call(to.launches));
}

namespace {

std::vector<float> difference_scores(const Array& keys) {
  const std::int64_t n = keys.dims()[0], dim = keys.dims()[1];
  const std::vector<float> norms = norms_of(keys);
  std::vector<double> sum(static_cast<std::size_t>(dim), 0.0);
  for (std::int64_t t = 0; t < n; ++t) {
    const auto key = keys.view().row(t);
    const float by = num::max(norms[static_cast<std::size_t>(t)], 1e-12F);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(key[i] / by);
  }
  std::vector<float> anchor(sum.size());
  for (std::size_t i = 0; i < sum.size(); ++i) anchor[i] = static_cast<float>(sum[i] / static_cast<double>(n));
  const float anchor_norm = num::max(norm_of(anchor), 1e-8F);
  std::vector<float> scores(static_cast<std::size_t>(n));
  for (std::int64_t t = 0; t < n; ++t) {
    const auto at = static_cast<std::size_t>(t);
    scores[at] = -(num::lane_dot(keys.view().row(t), anchor) / (num::max(norms[at], 1e-8F) * anchor_norm));
  }
  return scores;
}

/// Adds the weights of one query over all rows of one head.
void add_weights(const LayerClass& c, std::span<const float> q, View<const float> keys, std::vector<std::uint64_t>& mass) {
  std::vector<float> x(mass.size()), p(mass.size());
  logits(q, keys, logit_scale(c), x);
  softmax_weights(x, softmax_part(x, View<const float>(nullptr, {static_cast<std::int64_t>(x.size()), 0})), p);
  for (std::size_t t = 0; t < mass.size(); ++t) mass[t] += num::to_mass(p[t]);
}

}  // namespace

Scorer key_norm() {
  return {.score = [](const Scene& scene) {
            return of_heads(scene, [&](int h) {
              std::vector<float> scores = norms_of(scene.rows.keys(h));
              for (float& s : scores) s = -s;
              return scores;
            });
          },
          .charge = [](const Charge& to) { charge_rows(to, to.c.k_dim); }};
}

Scorer key_difference() {
  return {.score = [](const Scene& scene) { return of_heads(scene, [&](int h) { return difference_scores(scene.rows.keys(h)); }); },
          .charge = [](const Charge& to) { charge_rows(to, to.c.k_dim, 2); }};
}

Scorer window_attention(Tokens window, const ScoreReduce& reduce) {
  return {.score = [reduce](const Scene& scene) {
            return of_heads(scene, [&](int h) {
              const Array keys = scene.rows.keys(h);
              return reduce_masses(window_masses(scene.c, h, scene.queries, keys.view(), reduce.window), scene.queries.dim(1), reduce);
            });
          },
          .charge = [window](const Charge& to) { charge_window(to, to.prompt ? window : 1_tok); },
          .window = window,
          .unscored = window};
}

Scorer position_weighted_attention(Tokens window, bool by_position) {
  return {.score = [by_position](const Scene& scene) {
            return of_heads(scene, [&](int h) {
              const Array keys = scene.rows.keys(h);
              const std::int64_t n = keys.dims()[0], queries = scene.queries.dim(1);
              std::vector<std::uint64_t> total(static_cast<std::size_t>(n - queries));
              for (std::int64_t i = 0; i < queries; ++i) {
                std::vector<std::uint64_t> mass(static_cast<std::size_t>(n - queries + i + 1));
                const View<const float> seen = keys.view().slice(0, 0, n - queries + i + 1);
                for (int g = 0; g < scene.c.q_per_kv(); ++g) add_weights(scene.c, scene.queries.row(h * scene.c.q_per_kv() + g, i), seen, mass);
                const std::uint64_t weight = by_position ? static_cast<std::uint64_t>(n - queries + i) : 1;
                for (std::size_t t = 0; t < total.size(); ++t) total[t] += mass[t] * weight;
              }
              std::vector<float> scores;
              for (const std::uint64_t m : total) scores.push_back(num::from_mass(m) / static_cast<float>(queries) / static_cast<float>(scene.c.q_per_kv()));
              return scores;
            });
          },
          .charge = [window](const Charge& to) { charge_window(to, window); },
          .window = window,
          .unscored = window};
}

Scorer last_attention() {
  return {.score = [](const Scene& scene) {
            std::vector<std::vector<std::uint64_t>> masses(static_cast<std::size_t>(scene.rows.heads()));
            parallel_for(scene.rows.heads(), [&](std::int64_t h) {
              const Array keys = scene.rows.keys(static_cast<int>(h));
              auto& mass = masses[static_cast<std::size_t>(h)];
              mass.resize(static_cast<std::size_t>(keys.dims()[0]));
              for (std::int64_t g = 0; g < scene.c.q_per_kv(); ++g)
                add_weights(scene.c, scene.queries.row(h * scene.c.q_per_kv() + g, scene.queries.dim(1) - 1), keys.view(), mass);
            });
            std::vector<float> mean(masses.front().size());
            for (std::size_t t = 0; t < mean.size(); ++t) {
              std::uint64_t sum = 0;
              for (const auto& mass : masses) sum += mass[t];
              mean[t] = num::from_mass(sum) / static_cast<float>(scene.c.q_heads);
            }
            return Scores(masses.size(), mean);
          },
          .charge = charge_last,
          .window = 1_tok,
          .weights_leave = true};
}

Scorer scorer_of(BaseScore base, const WindowParams& window) {
  if (base == BaseScore::knorm) return key_norm();
  if (base == BaseScore::tova) {
    Scorer last = last_attention();
    last.unscored = 1_tok;
    last.score = [all = last.score](const Scene& scene) {
      Scores scores = all(scene);
      for (auto& head : scores) head.pop_back();
      return scores;
    };
    return last;
  }
  return base == BaseScore::keydiff ? key_difference() : window_attention(window.observation_window, window.reduce());
}

}  // namespace kvatlas::eviction

#include "reference/primitives/eviction/query_scorers.hpp"

#include <algorithm>

#include "core/arith64.hpp"
#include "core/errors.hpp"
#include "core/kernels/transform.hpp"
#include "core/linalg/cholesky.hpp"
#include "core/rope.hpp"
#include "reference/primitives/attention.hpp"
#include "reference/primitives/eviction/per_head.hpp"
#include "reference/primitives/eviction/scorers.hpp"

namespace kvatlas::eviction {

namespace {

double scale_of(const LayerClass& c) { return c.score_scale > 0 ? c.score_scale : 1.0 / std::sqrt(static_cast<double>(c.k_dim)); }

/// Mean cosines and sines of the positions after a prompt.
struct MeanRotation {
  std::vector<double> cos, sin;
  const RopeSpec* spec;

  MeanRotation(const RopeTable& rope, std::int64_t first, std::int64_t count) : spec(&rope.spec()) {
    if (spec->rotary_dim == 0) return;
    for (const double f : rope.frequencies()) {
      double c = 0, s = 0;
      for (std::int64_t t = 0; t < count; ++t) {
        const double angle = static_cast<double>(first + t) * f;
        c += num::cos(angle);
        s += num::sin(angle);
      }
      cos.push_back(c / static_cast<double>(count) * rope.attention_factor());
      sin.push_back(s / static_cast<double>(count) * rope.attention_factor());
    }
  }
  void apply(double* row, std::size_t stride) const {
    const auto first = static_cast<std::size_t>(spec->first_channel);
    for (std::size_t i = 0; i < cos.size(); ++i) {
      const bool half = spec->layout == RopeLayout::half_split;
      double& x = row[(first + (half ? i : 2 * i)) * stride];
      double& y = row[(first + (half ? i + cos.size() : 2 * i + 1)) * stride];
      const double a = x * cos[i] - y * sin[i];
      y = y * cos[i] + x * sin[i];
      x = a;
    }
  }
};

std::vector<float> rounded(std::span<const double> row) {
  std::vector<float> out;
  for (const double x : row) out.push_back(static_cast<float>(x));
  return out;
}

/// Softmax weights of slots [first, n), zeros before.
std::vector<double> softmax_of(std::span<const float> z, std::size_t first) {
  std::vector<double> a(z.size(), 0.0);
  const float most = num::max_of(z.subspan(first));
  double sum = 0;
  for (std::size_t t = first; t < z.size(); ++t) sum += a[t] = num::exp(static_cast<double>(z[t]) - static_cast<double>(most));
  for (std::size_t t = first; t < z.size(); ++t) a[t] /= sum;
  return a;
}

std::vector<float> expected_of_head(const Scene& scene, const ExpectedAttention& how, const MeanRotation& turn, int head) {
  const Array keys = scene.rows.keys(head), values = scene.rows.values(head);
  const std::int64_t n = keys.dims()[0];
  const std::size_t first = static_cast<std::size_t>(std::min(how.future.sinks.value, n)), dim = static_cast<std::size_t>(keys.dims()[1]);
  const auto scale = static_cast<float>(scale_of(scene.c)), half = static_cast<float>(scale_of(scene.c) * scale_of(scene.c) / 2);
  std::vector<double> attention(static_cast<std::size_t>(n), 0.0);
  std::vector<float> z(attention.size()), product(dim);
  for (int g = 0; g < scene.c.q_per_kv(); ++g) {
    const int q_head = head * scene.c.q_per_kv() + g;
    std::vector<double> mean = scene.moments->mean(q_head);
    turn.apply(mean.data(), 1);
    const std::vector<float> mu = rounded(mean);
    std::vector<float> sigma;
    if (how.covariance) {
      linalg::Matrix s = scene.moments->covariance(q_head);
      for (std::size_t i = 0; i < dim; ++i) turn.apply(s.row(i).data(), 1);  // S R^T
      for (std::size_t i = 0; i < dim; ++i) turn.apply(&s(0, i), dim);       // R (S R^T)
      sigma = rounded(s.values());
    }
    for (std::size_t t = first; t < z.size(); ++t) {
      const auto key = keys.view().row(static_cast<std::int64_t>(t));
      z[t] = num::lane_dot(key, mu) * scale;
      if (!how.covariance) continue;
      for (std::size_t i = 0; i < dim; ++i) product[i] = num::lane_dot(std::span<const float>(sigma).subspan(i * dim, dim), key);
      z[t] += num::lane_dot(product, key) * half;
    }
    if (first == z.size()) break;
    const std::vector<double> a = softmax_of(z, first);
    for (std::size_t t = first; t < a.size(); ++t) attention[t] += a[t];
  }
  std::vector<float> scores(attention.size(), 0.0F);
  for (std::size_t t = first; t < scores.size(); ++t) {
    scores[t] = static_cast<float>(attention[t] / scene.c.q_per_kv());
    if (how.value_norm) scores[t] = (scores[t] + static_cast<float>(how.epsilon)) * norm_of(values.view().row(static_cast<std::int64_t>(t)));
  }
  return scores;
}

/// v' A^-1 v by the Cholesky factor: the squared norm of L^-1 v.
double quadratic(const linalg::Matrix& lower, std::span<const double> v, std::vector<double>& x) {
  double sum = 0;
  for (std::size_t i = 0; i < v.size(); ++i) {
    double value = v[i];
    for (std::size_t k = 0; k < i; ++k) value = linalg::fma(-lower(i, k), x[k], value);
    x[i] = value / lower(i, i);
    sum = linalg::fma(x[i], x[i], sum);
  }
  return sum;
}

std::vector<float> leverage_of_head(const Scene& scene, const FutureQueries& future, double tau, const MeanRotation& turn, int head) {
  const Array keys = scene.rows.keys(head);
  const linalg::Matrix values = linalg::from_view(scene.rows.values(head).view());
  const std::size_t n = values.rows(), dim = values.cols(), first = std::min(static_cast<std::size_t>(future.sinks.value), n);
  std::vector<double> sum(n, 0.0), x(dim);
  for (int g = 0; g < scene.c.q_per_kv() && first < n; ++g) {
    std::vector<double> mean = scene.moments->mean(head * scene.c.q_per_kv() + g);
    turn.apply(mean.data(), 1);
    const std::vector<float> query = rounded(mean);
    const float query_norm = num::max(norm_of(query), 1e-12F);
    std::vector<double> weight(n, 0.0);
    double most = -2;
    for (std::size_t t = first; t < n; ++t) {
      const auto key = keys.view().row(static_cast<std::int64_t>(t));
      weight[t] = static_cast<double>(num::lane_dot(key, query) / (num::max(norm_of(key), 1e-12F) * query_norm));
      most = std::max(most, weight[t]);
    }
    linalg::Matrix gram = linalg::Matrix::identity(dim);
    for (std::size_t t = first; t < n; ++t) {
      weight[t] = num::exp(tau * (weight[t] - most));
      const auto v = values.row(t);
      for (std::size_t i = 0; i < dim; ++i) {
        const double wv = (weight[t] + 1e-6) * v[i];
        for (std::size_t j = 0; j <= i; ++j) gram(i, j) = linalg::fma(wv, v[j], gram(i, j));
      }
    }
    const auto lower = linalg::cholesky(gram);
    KV_ASSERT(lower.has_value(), "the identity and squares are positive definite");
    for (std::size_t t = first; t < n; ++t) sum[t] += weight[t] * quadratic(*lower, values.row(t), x);
  }
  std::vector<float> scores;
  for (const double s : sum) scores.push_back(static_cast<float>(s / scene.c.q_per_kv()));
  return scores;
}

void charge_product(const Charge& to, std::int64_t dim) {
  to.plan.add(kernels::LowRank{.sequences = std::int64_t{to.history.sequences} * to.c.q_heads, .rows = to.rows.value,
                               .rank = to.c.k_dim, .dim = dim, .dtype = to.dtype}
                  .call(to.launches));
}

}  // namespace

void rotate_by_mean(const RopeTable& rope, std::int64_t first, std::int64_t count, std::span<double> row) {
  MeanRotation(rope, first, count).apply(row.data(), 1);
}

Scorer expected_attention(const ExpectedAttention& how) {
  return {.score = [how](const Scene& scene) {
            const MeanRotation turn(scene.rope, scene.rows.count(0), how.future.future_positions.value);
            return of_heads(scene, [&](int h) { return expected_of_head(scene, how, turn, h); });
          },
          .charge = [how](const Charge& to) {  // products of queries, then of every key with the covariance
            if (how.covariance) charge_product(to, to.c.k_dim);
            charge_product(to, how.covariance ? to.c.k_dim : 1);
            if (how.value_norm) charge_rows(to, to.c.v_dim);
          },
          .moments = how.covariance ? QueryMoments::Order::covariance : QueryMoments::Order::mean,
          .moments_skip = how.future.sinks};
}

Scorer weighted_leverage(const FutureQueries& future, double tau) {
  return {.score = [future, tau](const Scene& scene) {
            const MeanRotation turn(scene.rope, scene.rows.count(0), future.future_positions.value);
            return of_heads(scene, [&](int h) { return leverage_of_head(scene, future, tau, turn, h); });
          },
          .charge = [](const Charge& to) {
            charge_rows(to, to.c.k_dim);
            charge_product(to, to.c.v_dim);
            charge_product(to, to.c.v_dim);
          },
          .moments = QueryMoments::Order::mean,
          .moments_skip = future.sinks};
}

Scores non_causal_scores(const Scene& scene, const NonCausal& how) {
  KV_ASSERT(scene.queries.dim(1) == scene.rows.count(0), "all queries of the prompt are at hand");
  LayerClass unscaled = scene.c;
  unscaled.score_scale = 1.0;
  const float scale = logit_scale(how.scaled ? scene.c : unscaled);
  return of_heads(scene, [&](int head) {
    const Array keys = scene.rows.keys(head), values = scene.rows.values(head);
    const std::int64_t n = std::max<std::int64_t>(0, keys.dims()[0] - how.first - how.last);
    std::vector<std::uint64_t> mass(static_cast<std::size_t>(n));
    for (std::int64_t from = 0; from < n; from += how.chunk) {
      const std::int64_t real = std::min(how.chunk, n - from), size = how.padded ? how.chunk : real;
      std::vector<float> x(static_cast<std::size_t>(size)), p(x.size());
      for (int g = 0; g < scene.c.q_per_kv(); ++g)
        for (std::int64_t i = 0; i < size; ++i) {
          std::ranges::fill(x, 0.0F);
          if (i < real)
            logits(scene.queries.row(head * scene.c.q_per_kv() + g, how.first + from + i),
                   keys.view().slice(0, how.first + from, real), scale, std::span(x).first(static_cast<std::size_t>(real)));
          softmax_weights(x, softmax_part(x, View<const float>(nullptr, {size, 0})), p);
          for (std::int64_t t = 0; t < real; ++t) mass[static_cast<std::size_t>(from + t)] += num::to_mass(p[static_cast<std::size_t>(t)]);
        }
    }
    std::vector<float> weighted;
    for (std::int64_t t = 0; t < n; ++t)
      weighted.push_back(num::from_mass(mass[static_cast<std::size_t>(t)]) / static_cast<float>(scene.c.q_per_kv()) *
                         norm_of(values.view().row(how.first + t)));
    return pool(weighted, Pooling::avg, how.kernel);
  });
}

Scorer non_causal_attention(const NonCausal& how) {
  return {.score = [how](const Scene& scene) { return non_causal_scores(scene, how); },
          .charge = [how](const Charge& to) {
            const Tokens chunk = std::min(to.rows, Tokens(how.chunk));
            const auto chunks = static_cast<double>(ceil_div(to.rows.value, chunk.value));
            charge_window({to.plan, to.c, to.dtype, to.history, chunk, to.prompt, to.launches * chunks}, chunk);
            charge_rows(to, to.c.v_dim);
          },
          .window = Tokens(std::int64_t{1} << 30)};
}

void z_score(Scores& scores) {
  double sum = 0, squares = 0, count = 0;
  for (const auto& head : scores)
    for (const float s : head) sum += static_cast<double>(s), ++count;
  const double mean = count > 0 ? sum / count : 0.0;
  for (const auto& head : scores)
    for (const float s : head) squares += (static_cast<double>(s) - mean) * (static_cast<double>(s) - mean);
  const double deviation = std::max(1e-6, count > 1 ? std::sqrt(squares / (count - 1)) : 0.0);
  for (auto& head : scores)
    for (float& s : head) s = static_cast<float>((static_cast<double>(s) - mean) / deviation);
}

}  // namespace kvatlas::eviction

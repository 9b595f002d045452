#include "reference/primitives/eviction/row_scorers.hpp"

#include <algorithm>
#include <numeric>

#include "core/arith64.hpp"
#include "core/errors.hpp"
#include "core/linalg/cholesky.hpp"
#include "core/philox.hpp"
#include "core/rope.hpp"
#include "reference/primitives/eviction/per_head.hpp"
#include "reference/primitives/eviction/scorers.hpp"

namespace kvatlas::eviction {

namespace {

/// Softmax over one partition of the deviations of its rows, rows [first, first + lag) against those that follow.
std::vector<double> partition_scores(const Array& rows, std::int64_t first, std::int64_t lag) {
  const auto dim = static_cast<std::size_t>(rows.dims()[1]);
  std::vector<float> low(dim, num::infinity()), high(dim, -num::infinity());
  for (std::int64_t t = first + lag; t < first + 2 * lag; ++t)
    for (std::size_t i = 0; i < dim; ++i) {
      low[i] = num::min(low[i], rows.view().row(t)[i]);
      high[i] = num::max(high[i], rows.view().row(t)[i]);
    }
  std::vector<double> out;
  for (std::int64_t t = first; t < first + lag; ++t) {
    std::vector<double> relative(dim, 0.0);
    double mean = 0, squares = 0;
    for (std::size_t i = 0; i < dim; ++i) {
      const double range = static_cast<double>(high[i]) - static_cast<double>(low[i]);
      if (range > 0) relative[i] = (static_cast<double>(rows.view().row(t)[i]) - static_cast<double>(low[i])) / range;
      mean += relative[i];
    }
    mean /= static_cast<double>(dim);
    for (const double r : relative) squares += (r - mean) * (r - mean);
    out.push_back(dim > 1 ? std::sqrt(squares / static_cast<double>(dim - 1)) : 0.0);
  }
  const double most = *std::ranges::max_element(out);
  double sum = 0;
  for (double& x : out) sum += x = num::exp(x - most);
  for (double& x : out) x /= sum;
  return out;
}

/// Place of every score from the lowest (0) to the highest; of equal scores the lower slot is the higher.
std::vector<std::int64_t> ranks(const std::vector<double>& scores) {
  std::vector<std::int64_t> order(scores.size()), rank(scores.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::ranges::sort(order, [&](std::int64_t a, std::int64_t b) {
    const double x = scores[static_cast<std::size_t>(a)], y = scores[static_cast<std::size_t>(b)];
    return x != y ? x < y : a > b;
  });
  for (std::size_t i = 0; i < order.size(); ++i) rank[static_cast<std::size_t>(order[i])] = static_cast<std::int64_t>(i);
  return rank;
}

std::vector<float> lag_scores(const TokenRows& stored, int head, const Lag& how) {
  const std::int64_t n = stored.count(head), sinks = how.sinks.value, lag = how.lag.value;
  std::vector<float> scores(static_cast<std::size_t>(n), 1.0F);
  if (n < sinks + 2 * lag) {
    for (std::int64_t t = sinks; t < n; ++t) scores[static_cast<std::size_t>(t)] = static_cast<float>(t - sinks) / static_cast<float>(n - sinks);
    return scores;
  }
  const Array keys = stored.keys(head), values = stored.values(head);
  for (std::int64_t first = sinks; first + 2 * lag <= n; first += lag) {
    std::vector<double> both = partition_scores(keys, first, lag);
    const std::vector<double> of_values = partition_scores(values, first, lag);
    for (std::size_t t = 0; t < both.size(); ++t) both[t] = (both[t] + of_values[t]) / 2;
    const std::vector<std::int64_t> rank = ranks(both);
    for (std::size_t t = 0; t < both.size(); ++t)
      scores[static_cast<std::size_t>(first) + t] = how.ranked ? static_cast<float>(rank[t]) / static_cast<float>(lag) : static_cast<float>(both[t]);
  }
  return scores;
}

/// Squared norms of rows, or of their random projections, over the sum of each row's block.
std::vector<double> local_norms(const Array& rows, const Cur& how, const RandomStream& stream) {
  const std::int64_t n = rows.dims()[0], dim = rows.dims()[1];
  std::vector<double> out(static_cast<std::size_t>(n), 0.0);
  std::vector<double> directions(static_cast<std::size_t>(how.projection * dim));
  for (std::size_t i = 0; i < directions.size(); ++i) directions[i] = random_normal(stream, i);
  for (std::int64_t t = 0; t < n; ++t) {
    const auto row = rows.view().row(t);
    double& sum = out[static_cast<std::size_t>(t)];
    if (how.projection == 0)
      for (const float x : row) sum += static_cast<double>(x) * static_cast<double>(x);
    for (int r = 0; r < how.projection; ++r) {
      double dot = 0;
      for (std::size_t i = 0; i < row.size(); ++i) dot += static_cast<double>(row[i]) * directions[i * static_cast<std::size_t>(how.projection) + static_cast<std::size_t>(r)];
      sum += dot * dot / how.projection;
    }
  }
  const std::int64_t block = how.window > 0 ? how.window : std::max<std::int64_t>(1, n);
  for (std::int64_t first = 0; first < n; first += block) {
    double sum = 0;
    const std::int64_t end = std::min(n, first + block);
    for (std::int64_t t = first; t < end; ++t) sum += out[static_cast<std::size_t>(t)];
    for (std::int64_t t = first; t < end && sum > 0; ++t) out[static_cast<std::size_t>(t)] /= sum;
  }
  return out;
}

std::vector<float> cur_scores(const Scene& scene, const Cur& how, int head) {
  const RandomStream stream{.seed = how.seed, .layer = static_cast<std::uint32_t>(scene.place.layer), .head = static_cast<std::uint32_t>(head)};
  const std::vector<double> k = local_norms(scene.rows.keys(head), how, stream), v = local_norms(scene.rows.values(head), how, stream);
  std::vector<double> both(k.size());
  double sum = 0;
  for (std::size_t t = 0; t < k.size(); ++t) {
    both[t] = how.sides == CurSides::kv_product ? k[t] * v[t] : how.sides == CurSides::kv_average ? (k[t] + v[t]) / 2 : how.sides == CurSides::key ? k[t] : v[t];
    sum += both[t];
  }
  std::vector<float> scores;
  for (std::size_t t = 0; t < both.size(); ++t)
    scores.push_back(t < static_cast<std::size_t>(how.sinks.value) ? 1.0F : static_cast<float>(sum > 0 ? both[t] / sum : 0.0));
  return scores;
}

linalg::Matrix sketched(const Scene& scene, const Leverage& how, int head) {
  Array keys = scene.rows.keys(head);
  const std::int64_t n = std::max<std::int64_t>(0, keys.dims()[0] - how.first - how.last);
  const auto rows = static_cast<std::size_t>(n), dim = static_cast<std::size_t>(keys.dims()[1]), width = static_cast<std::size_t>(how.sketch);
  if (scene.rope.spec().rotary_dim > 0)
    for (std::int64_t t = 0; t < keys.dims()[0]; ++t) scene.rope.apply_inverse(keys.view().row(t), t);
  linalg::Matrix x(rows, dim), direction(dim, width);
  std::vector<double> mean(dim, 0.0);
  for (std::size_t t = 0; t < rows; ++t)
    for (std::size_t i = 0; i < dim; ++i) mean[i] += x(t, i) = static_cast<double>(keys.view().row(how.first + static_cast<std::int64_t>(t))[i]);
  for (std::size_t t = 0; t < rows; ++t)
    for (std::size_t i = 0; i < dim; ++i) x(t, i) -= mean[i] / static_cast<double>(rows);
  const RandomStream stream{.seed = how.seed, .layer = static_cast<std::uint32_t>(scene.place.layer), .head = static_cast<std::uint32_t>(head)};
  for (std::size_t i = 0; i < dim; ++i)
    for (std::size_t j = 0; j < width; ++j) direction(i, j) = (how.draw ? how.draw(head, static_cast<std::int64_t>(i), static_cast<std::int64_t>(j)) : random_normal(stream, i * width + j)) /
                        std::sqrt(static_cast<double>(how.sketch));
  return linalg::matmul(x, direction);
}

std::vector<float> leverage_of(const linalg::Matrix& x) {
  linalg::Matrix gram = linalg::matmul(linalg::transpose(x), x);
  for (std::size_t i = 0; i < gram.rows(); ++i) gram(i, i) += 1e-2;
  const auto lower = linalg::cholesky(gram);
  KV_ASSERT(lower.has_value(), "squares and a jitter are positive definite");
  const linalg::Matrix inverse = linalg::invert_lower(*lower);
  std::vector<float> out;
  for (std::size_t t = 0; t < x.rows(); ++t) {
    double sum = 0;
    for (std::size_t i = 0; i < inverse.rows(); ++i) {
      double y = 0;
      for (std::size_t k = 0; k <= i; ++k) y = linalg::fma(inverse(i, k), x(t, k), y);
      sum = linalg::fma(y, y, sum);
    }
    out.push_back(static_cast<float>(sum));
  }
  return out;
}

}  // namespace

Scorer lag_relative(const Lag& how) {
  return {.score = [how](const Scene& scene) { return of_heads(scene, [&](int h) { return lag_scores(scene.rows, h, how); }); },
          .charge = [](const Charge& to) {
            charge_rows(to, to.c.k_dim);
            charge_rows(to, to.c.v_dim);
          }};
}

Scorer column_norms(const Cur& how) {
  return {.score = [how](const Scene& scene) { return of_heads(scene, [&](int h) { return cur_scores(scene, how, h); }); },
          .charge = [](const Charge& to) {
            charge_rows(to, to.c.k_dim);
            charge_rows(to, to.c.v_dim);
          }};
}

Scores leverage_scores(const Scene& scene, const Leverage& how) {
  return of_heads(scene, [&](int h) { return leverage_of(sketched(scene, how, h)); });
}

Scores with_forced_tail(const Scene& scene, Scores scores) {
  float most = -num::infinity();
  for (const auto& head : scores) most = num::max(most, num::max_of(head));
  for (std::size_t h = 0; h < scores.size(); ++h) scores[h].resize(static_cast<std::size_t>(scene.rows.count(static_cast<int>(h))), most + 1.0F);
  return scores;
}

}  // namespace kvatlas::eviction

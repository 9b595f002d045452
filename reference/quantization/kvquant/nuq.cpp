#include "reference/quantization/kvquant/nuq.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/arith64.hpp"

namespace kvatlas::kvquant_nuq {

namespace {

/// The inverse of the normal distribution function: 60 halvings of [-10, 10], the integral by Simpson's rule.
double normal_quantile(double p) {
  constexpr double kRootTwoPi = 2.50662827463100050242;
  const auto below = [](double x) {
    constexpr int kSteps = 200;
    double sum = 0;
    for (int i = 0; i <= kSteps; ++i) {
      const double t = x * i / kSteps;
      sum = std::fma(i == 0 || i == kSteps ? 1.0 : i % 2 == 1 ? 4.0 : 2.0, num::exp(-t * t / 2), sum);
    }
    return 0.5 + sum * x / (3.0 * kSteps) / kRootTwoPi;
  };
  double low = -10, high = 10;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (below(middle) < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

}  // namespace

double percentile(std::span<const float> ascending, double rank) {
  const double at = rank * static_cast<double>(ascending.size() - 1);
  const auto below = static_cast<std::size_t>(std::floor(at));
  const std::size_t above = std::min(below + 1, ascending.size() - 1);
  const double a = static_cast<double>(ascending[below]), b = static_cast<double>(ascending[above]);
  return std::fma(b - a, at - static_cast<double>(below), a);
}

CodebookFit fit_codebook(std::span<const float> values, std::span<const float> weights, int entries, const RandomStream& stream) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, [&](std::size_t a, std::size_t b) { return values[a] != values[b] ? values[a] < values[b] : a < b; });
  std::vector<double> x, w;
  int different = 0;
  for (const std::size_t i : order) {
    x.push_back(static_cast<double>(values[i]));
    w.push_back(weights.empty() ? 1.0 : static_cast<double>(weights[i]));
    if (different < entries && (x.size() == 1 || x.back() != x[x.size() - 2])) ++different;
  }
  const auto k = static_cast<std::size_t>(entries);
  CodebookFit fit;
  if (different < entries) {
    for (std::size_t c = 0; c < k; ++c) fit.entries.push_back(static_cast<float>(-1.0 + 2.0 * static_cast<double>(c) / static_cast<double>(k - 1)));
    return fit;
  }
  std::vector<double> center, chance = w;
  for (std::size_t c = 0; c < k; ++c) {
    double total = 0, running = 0;
    for (const double d : chance) total += d;
    const double draw = static_cast<double>(random_uniform(stream, c)) * total;
    std::size_t chosen = x.size();
    for (std::size_t i = 0; i < x.size() && chosen == x.size(); ++i) {
      running += chance[i];
      if (running > draw) chosen = i;
    }
    if (chosen == x.size()) chosen = static_cast<std::size_t>(std::ranges::max_element(chance) - chance.begin());
    center.push_back(x[chosen]);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double d = x[i] - center.back(), squared = w[i] * (d * d);
      chance[i] = c == 0 ? squared : std::min(chance[i], squared);
    }
  }
  std::ranges::sort(center);
  std::vector<double> sum(x.size() + 1, 0.0), weight(x.size() + 1, 0.0);  // of all values before each
  for (std::size_t i = 0; i < x.size(); ++i) {
    sum[i + 1] = std::fma(w[i], x[i], sum[i]);
    weight[i + 1] = weight[i] + w[i];
  }
  std::vector<std::size_t> border(k + 1, 0), before;
  const auto assign = [&] {
    border.front() = 0;
    border.back() = x.size();
    for (std::size_t c = 0; c + 1 < k; ++c) {
      const double middle = (center[c] + center[c + 1]) / 2;
      border[c + 1] = static_cast<std::size_t>(std::ranges::upper_bound(x, middle) - x.begin());
    }
  };
  for (int round = 0; round < 50; ++round) {
    before = border;
    assign();
    if (round > 0 && before == border) break;
    for (std::size_t c = 0; c < k; ++c) {
      const double of = weight[border[c + 1]] - weight[border[c]];
      if (of > 0) center[c] = (sum[border[c + 1]] - sum[border[c]]) / of;
    }
    std::ranges::sort(center);
  }
  assign();
  for (std::size_t c = 0; c < k; ++c) {
    fit.entries.push_back(static_cast<float>(center[c]));
    for (std::size_t i = border[c]; i < border[c + 1]; ++i) fit.inertia = std::fma(w[i], (x[i] - center[c]) * (x[i] - center[c]), fit.inertia);
  }
  return fit;
}

std::vector<float> uniform_codebook(int bits) {
  std::vector<float> out;
  const int n = 1 << bits;
  for (int i = 0; i < n; ++i) out.push_back(static_cast<float>(-1.0 + 2.0 * i / (n - 1)));
  return out;
}

std::vector<float> normal_codebook(int bits) {
  const int n = 1 << bits;
  constexpr double offset = 0.5 * (1.0 / 32 + 1.0 / 30);  // keeps percentiles finite; the released code takes that of 4 bits for every width
  const auto spaced = [&](double from, double to, int count) {
    std::vector<double> out;
    for (int i = 0; i < count; ++i) out.push_back(normal_quantile(from + (to - from) * i / (count - 1)));
    return out;
  };
  const std::vector<double> negative = spaced(offset, 0.5, n / 2), positive = spaced(0.5, 1 - offset, n / 2 + 1);
  std::vector<double> all(negative.begin(), negative.end());
  all.insert(all.end(), positive.begin() + 1, positive.end());
  all[static_cast<std::size_t>(n / 2 - 1)] = 0;
  double largest = 0;
  for (const double v : all) largest = std::max(largest, std::fabs(v));
  std::vector<float> out;
  for (const double v : all) out.push_back(static_cast<float>(v / largest));
  return out;
}

std::uint8_t nearest_entry(std::span<const float> codebook, float x) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < codebook.size(); ++i)
    if (std::fabs(x - codebook[i]) < std::fabs(x - codebook[best])) best = i;
  return static_cast<std::uint8_t>(best);
}

Norm fit_norm(std::span<const float> values, std::span<const float> codebook) {
  if (values.empty()) return {};
  double m1 = 0, m2 = 0, v1 = 0, v2 = 0;
  std::vector<double> entry;
  for (const float f : values) {
    entry.push_back(static_cast<double>(codebook[nearest_entry(codebook, f)]));
    m1 += static_cast<double>(f);
    m2 += entry.back();
  }
  const auto n = static_cast<double>(values.size());
  m1 /= n;
  m2 /= n;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double a = static_cast<double>(values[i]) - m1, b = entry[i] - m2;
    v1 = std::fma(a, a, v1);
    v2 = std::fma(b, b, v2);
  }
  if (v1 == 0 || v2 == 0) return {};
  const double scale = std::sqrt(v1 / v2);
  return {.scale = static_cast<float>(scale), .offset = static_cast<float>(m1 - m2 * scale)};
}

}  // namespace kvatlas::kvquant_nuq

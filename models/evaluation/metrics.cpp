#include "models/evaluation/metrics.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "core/arith64.hpp"
#include "core/errors.hpp"
#include "core/philox.hpp"

namespace kvatlas::models {

namespace {

constexpr double kNormal975 = 1.959964, kNormal80 = 0.841621;  // quantiles of the normal distribution

std::int64_t argmax(std::span<const float> x) { return std::ranges::max_element(x) - x.begin(); }  // the first of equals

/// Log of the sum of e^x in float64, in order.
double log_partition(std::span<const float> x) {
  const auto top = static_cast<double>(*std::ranges::max_element(x));
  double sum = 0;
  for (const float v : x) sum += num::exp(static_cast<double>(v) - top);
  return top + num::log(sum);
}

/// `statistic` of the whole and of resampled units; a unit is an index below `units`. Fewer than `least` give the value alone.
Estimate resample(std::int64_t units, std::int64_t least, const Bootstrap& b, std::uint32_t what, const std::function<double(std::span<const std::int64_t>)>& statistic) {
  std::vector<std::int64_t> chosen(static_cast<std::size_t>(units));
  for (std::size_t i = 0; i < chosen.size(); ++i) chosen[i] = static_cast<std::int64_t>(i);
  Estimate e{.value = statistic(chosen)};
  if (units < least) return e;
  std::vector<double> draws;
  draws.reserve(static_cast<std::size_t>(b.samples));
  double sum = 0, squares = 0;
  for (int s = 0; s < b.samples; ++s) {
    // One stream for all figures: they are resampled together, as pairs.
    const RandomStream stream{.seed = b.seed, .layer = what, .step = static_cast<std::uint32_t>(s)};
    for (std::size_t i = 0; i < chosen.size(); ++i) chosen[i] = random_below(stream, i, static_cast<std::uint32_t>(units));
    draws.push_back(statistic(chosen));
    sum += draws.back() - e.value;
    squares += (draws.back() - e.value) * (draws.back() - e.value);
  }
  std::ranges::sort(draws);
  const auto at = [&](double share) { return draws[static_cast<std::size_t>(share * static_cast<double>(draws.size() - 1) + 0.5)]; };
  e.ci95 = std::array{at(0.025), at(0.975)};
  // Resampling n units shows (n - 1) / n of their sample variance.
  const double n = b.samples, variance = std::max(0.0, squares - sum * sum / n) / (n - 1), unbiased = static_cast<double>(units) / static_cast<double>(units - 1);
  e.min_detectable = (student_quantile(kNormal975, units - 1) + student_quantile(kNormal80, units - 1)) * std::sqrt(variance * unbiased);
  return e;
}

}  // namespace

bool all_finite(std::span<const float> logits) {
  return std::ranges::all_of(logits, [](float x) { return std::isfinite(x); });
}

double negative_log_likelihood(std::span<const float> logits, std::int64_t token) {
  return log_partition(logits) - static_cast<double>(logits[static_cast<std::size_t>(token)]);
}

double student_quantile(double z, std::int64_t degrees) {
  // The expansion of Cornish and Fisher in 1 / degrees.
  const double v = static_cast<double>(degrees), z2 = z * z;
  return z * (1 + (z2 + 1) / (4 * v) + ((5 * z2 + 16) * z2 + 3) / (96 * v * v) + (((3 * z2 + 19) * z2 + 17) * z2 - 15) / (384 * v * v * v));
}

TokenScore score_token(std::span<const float> full, std::span<const float> method, std::int64_t token) {
  KV_ASSERT(full.size() == method.size() && token >= 0 && token < static_cast<std::int64_t>(full.size()), "logits of one vocabulary");
  if (!all_finite(full) || !all_finite(method)) throw InvalidArgument("logits of a scored token are not finite");
  const double z_full = log_partition(full), z = log_partition(method);
  const auto at = static_cast<std::size_t>(token);
  TokenScore s{.nll_full = z_full - static_cast<double>(full[at]), .nll = z - static_cast<double>(method[at]),
               .agrees = argmax(full) == argmax(method)};
  for (std::size_t i = 0; i < full.size(); ++i) {
    const double log_p = static_cast<double>(full[i]) - z_full;
    if (log_p < -40.0) continue;  // below 1e-17 of the mass
    s.kl += num::exp(log_p) * (log_p - (static_cast<double>(method[i]) - z));
  }
  s.kl = std::max(0.0, s.kl);  // float64 rounding leaves about -1e-15 of distributions that nearly agree
  return s;
}

TextSummary summarize(std::span<const TokenScore> scores, const Bootstrap& bootstrap) {
  if (scores.empty()) throw InvalidArgument("no tokens were scored");
  TextSummary t;
  t.n = static_cast<std::int64_t>(scores.size());
  const std::int64_t window = bootstrap.window > 0 ? bootstrap.window : t.n;
  const std::int64_t in_window = (window + bootstrap.block - 1) / bootstrap.block;
  const auto block_of = [&](std::int64_t i) { return i / window * in_window + i % window / bootstrap.block; };
  const std::int64_t blocks = t.blocks = block_of(t.n - 1) + 1;
  struct Sums {
    double nll_full = 0, nll = 0, kl = 0, agrees = 0, n = 0;
  };
  std::vector<Sums> sums(static_cast<std::size_t>(blocks));
  std::vector<double> kl;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    Sums& s = sums[static_cast<std::size_t>(block_of(static_cast<std::int64_t>(i)))];
    s.nll_full += scores[i].nll_full;
    s.nll += scores[i].nll;
    s.kl += scores[i].kl;
    s.agrees += scores[i].agrees ? 1.0 : 0.0;
    s.n += 1.0;
    kl.push_back(scores[i].kl);
  }
  const auto mean = [&](std::span<const std::int64_t> chosen, double Sums::*field) {
    double total = 0, n = 0;
    for (const std::int64_t b : chosen) {
      total += sums[static_cast<std::size_t>(b)].*field;
      n += sums[static_cast<std::size_t>(b)].n;
    }
    return total / n;
  };
  using Chosen = std::span<const std::int64_t>;
  t.perplexity_full = resample(blocks, kLeastBlocks, bootstrap, 0, [&](Chosen c) { return num::exp(mean(c, &Sums::nll_full)); });
  t.perplexity = resample(blocks, kLeastBlocks, bootstrap, 0, [&](Chosen c) { return num::exp(mean(c, &Sums::nll)); });
  t.delta_perplexity = resample(blocks, kLeastBlocks, bootstrap, 0, [&](Chosen c) { return num::exp(mean(c, &Sums::nll)) - num::exp(mean(c, &Sums::nll_full)); });
  t.kl_mean = resample(blocks, kLeastBlocks, bootstrap, 0, [&](Chosen c) { return mean(c, &Sums::kl); });
  t.top1_agreement = resample(blocks, kLeastBlocks, bootstrap, 0, [&](Chosen c) { return mean(c, &Sums::agrees); });
  std::ranges::sort(kl);
  t.kl_max = kl.back();
  t.kl_p99 = kl[static_cast<std::size_t>(0.99 * static_cast<double>(kl.size() - 1) + 0.5)];
  return t;
}

Estimate share_of_trials(std::span<const double> values) {
  if (values.empty()) throw InvalidArgument("no trials were run");
  double hits = 0;
  for (const double v : values) hits += v;
  const double n = static_cast<double>(values.size()), p = hits / n, z2 = kNormal975 * kNormal975;
  const double centre = (p + z2 / (2 * n)) / (1 + z2 / n);
  const double half = kNormal975 / (1 + z2 / n) * std::sqrt(p * (1 - p) / n + z2 / (4 * n * n));
  return {.value = p, .ci95 = std::array{std::max(0.0, centre - half), std::min(1.0, centre + half)}};
}

Estimate kendall_tau(std::span<const double> a, std::span<const double> b, const Bootstrap& bootstrap, std::span<const std::int64_t> groups) {
  if (a.size() != b.size() || a.size() < 2) throw InvalidArgument(cat("rankings have ", a.size(), " and ", b.size(), " entries, must have as many, at least 2"));
  KV_ASSERT(groups.empty() || groups.size() == a.size(), "a group for each thing");
  return resample(static_cast<std::int64_t>(a.size()), kLeastRanked, bootstrap, 2, [&](std::span<const std::int64_t> chosen) {
    double agree = 0, pairs_a = 0, pairs_b = 0;
    for (std::size_t i = 0; i < chosen.size(); ++i)
      for (std::size_t j = i + 1; j < chosen.size(); ++j) {
        const auto one = static_cast<std::size_t>(chosen[i]), two = static_cast<std::size_t>(chosen[j]);
        if (!groups.empty() && groups[one] != groups[two]) continue;
        const double da = a[one] - a[two], db = b[one] - b[two];
        const int sa = (da > 0) - (da < 0), sb = (db > 0) - (db < 0);
        agree += sa * sb;
        pairs_a += sa != 0;
        pairs_b += sb != 0;
      }
    return pairs_a > 0 && pairs_b > 0 ? agree / std::sqrt(pairs_a * pairs_b) : 0.0;
  });
}

const char* name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::unknown: return "unknown";
    case Verdict::tied: return "tied";
    case Verdict::differs: return "differs";
    case Verdict::fails: return "fails";
  }
  return "";
}

Verdict verdict_of(const TextSummary& s) {
  if (!s.delta_perplexity.min_detectable) return Verdict::unknown;
  if (s.perplexity.value > 2 * s.perplexity_full.value || s.top1_agreement.value < 0.5) return Verdict::fails;
  return std::abs(s.delta_perplexity.value) <= *s.delta_perplexity.min_detectable ? Verdict::tied : Verdict::differs;
}

}  // namespace kvatlas::models

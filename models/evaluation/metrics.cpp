#include "models/evaluation/metrics.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "core/arith64.hpp"
#include "core/errors.hpp"
#include "core/philox.hpp"
#include "models/runtime/pointwise.hpp"

namespace kvatlas::models {

namespace {

constexpr double kPower = 1.959964 + 0.841621;  // normal quantiles of 97.5% and 80%

std::int64_t argmax(std::span<const float> x) { return std::ranges::max_element(x) - x.begin(); }  // the first of equals

/// `statistic` of the whole and of resampled units; a unit is an index below `units`.
Estimate resample(std::int64_t units, const Bootstrap& b, std::uint32_t what, const std::function<double(std::span<const std::int64_t>)>& statistic) {
  std::vector<std::int64_t> chosen(static_cast<std::size_t>(units));
  for (std::size_t i = 0; i < chosen.size(); ++i) chosen[i] = static_cast<std::int64_t>(i);
  Estimate e{.value = statistic(chosen)};
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
  e.ci95 = {at(0.025), at(0.975)};
  const double n = b.samples, mean = sum / n;
  e.min_detectable = kPower * std::sqrt(std::max(0.0, squares / n - mean * mean));
  return e;
}

}  // namespace

TokenScore score_token(std::span<const float> full, std::span<const float> method, std::int64_t token) {
  KV_ASSERT(full.size() == method.size() && token >= 0 && token < static_cast<std::int64_t>(full.size()), "logits of one vocabulary");
  const double z_full = log_sum_exp(full), z = log_sum_exp(method);
  const auto at = static_cast<std::size_t>(token);
  TokenScore s{.nll_full = z_full - static_cast<double>(full[at]), .nll = z - static_cast<double>(method[at]),
               .agrees = argmax(full) == argmax(method)};
  for (std::size_t i = 0; i < full.size(); ++i) {
    const double log_p = static_cast<double>(full[i]) - z_full;
    if (log_p < -40.0) continue;  // below 1e-17 of the mass
    s.kl += num::exp(log_p) * (log_p - (static_cast<double>(method[i]) - z));
  }
  s.kl = std::max(0.0, s.kl);  // rounding can leave -1e-16 of equal distributions
  return s;
}

TextSummary summarize(std::span<const TokenScore> scores, const Bootstrap& bootstrap) {
  if (scores.empty()) throw InvalidArgument("no tokens were scored");
  TextSummary t;
  t.n = static_cast<std::int64_t>(scores.size());
  const std::int64_t block = std::clamp<std::int64_t>(t.n / 8, 1, bootstrap.block);
  const std::int64_t blocks = (t.n + block - 1) / block;
  struct Sums {
    double nll_full = 0, nll = 0, kl = 0, agrees = 0, n = 0;
  };
  std::vector<Sums> sums(static_cast<std::size_t>(blocks));
  std::vector<double> kl;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    Sums& s = sums[i / static_cast<std::size_t>(block)];
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
  t.perplexity_full = resample(blocks, bootstrap, 0, [&](Chosen c) { return num::exp(mean(c, &Sums::nll_full)); });
  t.perplexity = resample(blocks, bootstrap, 0, [&](Chosen c) { return num::exp(mean(c, &Sums::nll)); });
  t.delta_perplexity = resample(blocks, bootstrap, 0, [&](Chosen c) { return num::exp(mean(c, &Sums::nll)) - num::exp(mean(c, &Sums::nll_full)); });
  t.kl_mean = resample(blocks, bootstrap, 0, [&](Chosen c) { return mean(c, &Sums::kl); });
  t.top1_agreement = resample(blocks, bootstrap, 0, [&](Chosen c) { return mean(c, &Sums::agrees); });
  std::ranges::sort(kl);
  t.kl_max = kl.back();
  t.kl_p99 = kl[static_cast<std::size_t>(0.99 * static_cast<double>(kl.size() - 1) + 0.5)];
  return t;
}

Estimate mean_of_trials(std::span<const double> values, const Bootstrap& bootstrap) {
  if (values.empty()) throw InvalidArgument("no trials were run");
  return resample(static_cast<std::int64_t>(values.size()), bootstrap, 1, [&](std::span<const std::int64_t> chosen) {
    double total = 0;
    for (const std::int64_t i : chosen) total += values[static_cast<std::size_t>(i)];
    return total / static_cast<double>(chosen.size());
  });
}

Estimate kendall_tau(std::span<const double> a, std::span<const double> b, const Bootstrap& bootstrap) {
  if (a.size() != b.size() || a.size() < 2) throw InvalidArgument(cat("rankings have ", a.size(), " and ", b.size(), " entries, must have as many, at least 2"));
  return resample(static_cast<std::int64_t>(a.size()), bootstrap, 2, [&](std::span<const std::int64_t> chosen) {
    double agree = 0, pairs_a = 0, pairs_b = 0;
    for (std::size_t i = 0; i < chosen.size(); ++i)
      for (std::size_t j = i + 1; j < chosen.size(); ++j) {
        const auto at = [&](std::span<const double> x, std::size_t k) { return x[static_cast<std::size_t>(chosen[k])]; };
        const double da = at(a, i) - at(a, j), db = at(b, i) - at(b, j);
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
    case Verdict::tied: return "tied";
    case Verdict::differs: return "differs";
    case Verdict::fails: return "fails";
  }
  return "";
}

Verdict verdict_of(const TextSummary& s) {
  if (s.perplexity.value > 2 * s.perplexity_full.value || s.top1_agreement.value < 0.5) return Verdict::fails;
  return std::abs(s.delta_perplexity.value) <= s.delta_perplexity.min_detectable ? Verdict::tied : Verdict::differs;
}

}  // namespace kvatlas::models

// How far a model's predictions move when its cache is compressed: figures of single tokens, and what may be said of many.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace kvatlas::models {

/// One scored token: the plain cache's prediction beside a method's.
struct TokenScore {
  double nll_full = 0;  // -log probability of the token that came, natural units
  double nll = 0;
  double kl = 0;        // sum of p_full log(p_full / p), natural units
  bool agrees = false;  // both would have chosen the same token
};

/// From the logits of one position; `token` is what came.
TokenScore score_token(std::span<const float> full, std::span<const float> method, std::int64_t token);

/// A figure with its 95% interval and the smallest true difference that a run of this size shows in four of five cases
/// (2.80 standard errors: 1.96 for the interval, 0.84 for the power).
struct Estimate {
  double value = 0;
  std::array<double, 2> ci95{};
  double min_detectable = 0;
};

struct TextSummary {
  std::int64_t n = 0;
  Estimate perplexity_full, perplexity, delta_perplexity, kl_mean, top1_agreement;
  double kl_p99 = 0, kl_max = 0;
};

/// Resampling of the paired bootstrap: a sample draws blocks of consecutive tokens with replacement, because neighbouring tokens
/// are not independent; a block keeps a method's figures beside those of `full`.
struct Bootstrap {
  std::uint64_t seed = 0;
  int samples = 2000;
  std::int64_t block = 32;  // shorter where fewer than eight blocks would be left
};

/// throws InvalidArgument for no tokens
TextSummary summarize(std::span<const TokenScore> scores, const Bootstrap& bootstrap = {});

/// Mean of values from independent trials.
Estimate mean_of_trials(std::span<const double> values, const Bootstrap& bootstrap = {});

/// Kendall's tau-b of two rankings of the same things; 0 when one of them has no order at all. The interval resamples things.
Estimate kendall_tau(std::span<const double> a, std::span<const double> b, const Bootstrap& bootstrap = {});

/// What a method's text figures say beside those of `full`.
enum class Verdict : std::uint8_t {
  tied,     // the change of perplexity is below what this run can detect
  differs,  // beyond that, in either direction
  fails,    // perplexity more than doubles, or fewer than half of the choices stay: the text is no longer read
};
const char* name_of(Verdict verdict);
Verdict verdict_of(const TextSummary& summary);

}  // namespace kvatlas::models

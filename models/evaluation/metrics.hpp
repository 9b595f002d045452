// How far a model's predictions move when its cache is compressed: figures of single tokens, and what may be said of many.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
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

bool all_finite(std::span<const float> logits);
/// What a run says whose plain cache already predicts no distribution.
inline constexpr const char* kPlainNotFinite = "logits of the plain cache are not finite: no method can be compared with it";

/// -log probability of the token, natural units, in float64 from finite logits.
double negative_log_likelihood(std::span<const float> logits, std::int64_t token);

/// From the finite logits of one position; `token` is what came.
TokenScore score_token(std::span<const float> full, std::span<const float> method, std::int64_t token);

/// A figure with its 95% interval and the smallest true difference that a run of this size shows in four of five cases
/// (the quantiles 97.5% and 80% of Student's t, in standard errors). Both are none where too few units were resampled.
struct Estimate {
  double value = 0;
  std::optional<std::array<double, 2>> ci95{};
  std::optional<double> min_detectable{};
};

struct TextSummary {
  std::int64_t n = 0, blocks = 0;
  Estimate perplexity_full, perplexity, delta_perplexity, kl_mean, top1_agreement;
  double kl_p99 = 0, kl_max = 0;
};

/// Resampling of the paired bootstrap: a sample draws blocks of consecutive tokens with replacement, because neighbouring tokens
/// are not independent; a block keeps a method's figures beside those of `full`.
struct Bootstrap {
  std::uint64_t seed = 0;
  int samples = 2000;
  std::int64_t block = 32;
  std::int64_t window = 0;  // scored tokens of a window, which no block leaves; 0: all are one window
};

/// A bootstrap of fewer blocks is too narrow to be believed: the figures then have no interval.
inline constexpr std::int64_t kLeastBlocks = 20;
/// The same for the things of a ranking.
inline constexpr std::int64_t kLeastRanked = 6;

/// throws InvalidArgument for no tokens
TextSummary summarize(std::span<const TokenScore> scores, const Bootstrap& bootstrap = {});

/// Share of independent trials that are 1, the others 0, with Wilson's interval: it is not a point where all trials agree.
Estimate share_of_trials(std::span<const double> values);

/// Quantile of Student's t from that of the normal distribution, for at least 19 degrees of freedom (below 1e-4 off).
double student_quantile(double normal_quantile, std::int64_t degrees);

/// Kendall's tau-b of two rankings of the same things; 0 when one of them has no order at all. The interval resamples things.
/// groups   things are compared only inside their group; none: all are one group
Estimate kendall_tau(std::span<const double> a, std::span<const double> b, const Bootstrap& bootstrap = {}, std::span<const std::int64_t> groups = {});

/// What a method's text figures say beside those of `full`.
enum class Verdict : std::uint8_t {
  unknown,  // too few blocks to say what the run can detect
  tied,     // the change of perplexity is below what this run can detect
  differs,  // beyond that, in either direction
  fails,    // perplexity more than doubles, or fewer than half of the choices stay: the text is no longer read
};
const char* name_of(Verdict verdict);
Verdict verdict_of(const TextSummary& summary);

}  // namespace kvatlas::models

#include "models/evaluation/metrics.hpp"

#include <cmath>

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::models;

TEST_CASE("one token's figures are those of the two distributions", "[unit]") {
  // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = (ln 2) / 2 - (ln 2) / 4.
  const std::vector<float> p{std::log(2.0F), 0, 0}, q{0, std::log(2.0F), 0};
  const TokenScore s = score_token(p, q, 2);
  CHECK(s.nll_full == Approx(std::log(4.0)).epsilon(1e-6));
  CHECK(s.nll == Approx(std::log(4.0)).epsilon(1e-6));
  CHECK(s.kl == Approx(0.25 * std::log(2.0)).epsilon(1e-6));
  CHECK_FALSE(s.agrees);
  const TokenScore same = score_token(p, p, 0);
  CHECK(same.kl < 1e-15);
  CHECK(same.nll == same.nll_full);
  CHECK(same.agrees);
}

TEST_CASE("a summary is exact on constant figures and its interval holds the value on noisy ones", "[unit]") {
  std::vector<TokenScore> scores(256, {.nll_full = 1.0, .nll = 1.25, .kl = 0.5, .agrees = true});
  TextSummary t = summarize(scores);
  CHECK(t.perplexity_full.value == Approx(std::exp(1.0)));
  CHECK(t.delta_perplexity.value == Approx(std::exp(1.25) - std::exp(1.0)));
  CHECK(t.kl_mean.ci95[0] == 0.5);
  CHECK(t.kl_mean.min_detectable == 0.0);
  CHECK(t.top1_agreement.value == 1.0);
  CHECK(verdict_of(t) == Verdict::differs);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    scores[i].nll = 1.0 + (static_cast<double>((i * 7919) % 13) - 6.0) * 0.1;
    scores[i].kl = i == 100 ? 9.0 : 0.01;
  }
  t = summarize(scores, {.seed = 3});
  CHECK(t.delta_perplexity.ci95[0] < 0.0);
  CHECK(t.delta_perplexity.ci95[1] > 0.0);
  CHECK(verdict_of(t) == Verdict::tied);
  CHECK(t.kl_max == 9.0);
  CHECK(t.kl_p99 == 0.01);
  CHECK(summarize(scores, {.seed = 3}).kl_mean.ci95 == t.kl_mean.ci95);
  for (TokenScore& s : scores) s.nll = 3.0;
  CHECK(verdict_of(summarize(scores)) == Verdict::fails);
  CHECK_THROWS_WITH(summarize({}), "no tokens were scored");
}

TEST_CASE("a paired interval is narrow where both rows share their noise", "[unit]") {
  std::vector<TokenScore> scores;
  for (std::size_t i = 0; i < 512; ++i) {
    const double noise = static_cast<double>((i * 31) % 17) * 0.2;
    scores.push_back({.nll_full = 1.0 + noise, .nll = 1.01 + noise, .kl = 0.01, .agrees = true});
  }
  const TextSummary t = summarize(scores);
  CHECK(t.delta_perplexity.ci95[0] > 0.0);  // seen, though perplexity itself is ten times less certain
  CHECK(t.perplexity.min_detectable > 10 * t.delta_perplexity.min_detectable);
}

TEST_CASE("Kendall's tau is 1 for equal rankings, -1 for opposite ones, 0 without an order", "[unit]") {
  const std::vector<double> up{1, 2, 3, 4, 5}, down{5, 4, 3, 2, 1}, flat{1, 1, 1, 1, 1}, mixed{1, 3, 2, 4, 5};
  CHECK(kendall_tau(up, up).value == 1.0);
  CHECK(kendall_tau(up, down).value == -1.0);
  CHECK(kendall_tau(up, flat).value == 0.0);
  CHECK(kendall_tau(up, mixed).value == Approx(0.8));
  CHECK_THROWS_WITH(kendall_tau(up, std::vector<double>{1}), "rankings have 5 and 1 entries, must have as many, at least 2");
}

TEST_CASE("the mean of trials carries an interval", "[unit]") {
  const std::vector<double> hits{1, 1, 0, 1, 0, 1, 1, 1, 0, 1};
  const Estimate e = mean_of_trials(hits);
  CHECK(e.value == 0.7);
  CHECK(e.ci95[0] >= 0.3);
  CHECK(e.ci95[0] <= 0.5);
  CHECK(e.ci95[1] >= 0.9);
}

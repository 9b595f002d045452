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
  CHECK(same.kl == 0.0);
  CHECK(same.nll == same.nll_full);
  CHECK(same.agrees);
}

TEST_CASE("a token's figures are float64 sums, and logits that are not finite have none", "[unit]") {
  std::vector<float> p(5000), q(5000);
  for (std::size_t i = 0; i < p.size(); ++i) {
    p[i] = static_cast<float>((i * 7919) % 1000) * 0.01F;
    q[i] = p[i] + 3.0F;  // the same distribution, shifted by what a sum in float32 does not hold
  }
  const TokenScore s = score_token(p, q, 17);
  CHECK(s.kl < 1e-12);
  CHECK(std::abs(s.nll - s.nll_full) < 1e-6);
  long double sum = 0;
  for (const float x : p) sum += std::exp(static_cast<long double>(x));
  CHECK(s.nll_full == Approx(static_cast<double>(std::log(sum)) - static_cast<double>(p[17])).epsilon(1e-14));
  q[3] = std::nanf("");
  CHECK_THROWS_WITH(score_token(p, q, 17), "logits of a scored token are not finite");
}

TEST_CASE("few blocks give no interval and no verdict, and blocks stay inside their window", "[unit]") {
  const TokenScore worse{.nll_full = 1.0, .nll = 3.0, .kl = 0.5, .agrees = false};
  const TextSummary one = summarize(std::vector<TokenScore>(1, worse));
  CHECK(one.delta_perplexity.value > 10);
  CHECK_FALSE(one.delta_perplexity.ci95);
  CHECK_FALSE(one.delta_perplexity.min_detectable);
  CHECK(verdict_of(one) == Verdict::unknown);
  CHECK(verdict_of(summarize(std::vector<TokenScore>(19 * 32, worse))) == Verdict::unknown);
  CHECK(verdict_of(summarize(std::vector<TokenScore>(20 * 32, worse))) == Verdict::fails);
  CHECK(summarize(std::vector<TokenScore>(150, worse), {.window = 50}).blocks == 6);
}

TEST_CASE("the detectable difference is that of the sample variance and Student's t", "[unit]") {
  CHECK(student_quantile(1.959964, 19) == Approx(2.09302).epsilon(1e-4));
  CHECK(student_quantile(1.959964, 30) == Approx(2.04227).epsilon(1e-4));
  CHECK(student_quantile(0.841621, 19) == Approx(0.860951).epsilon(1e-4));
  std::vector<TokenScore> scores(20);
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i].kl = i < 10 ? 0.0 : 1.0;
  // Standard error sqrt(20 / 4 / 19 / 20) = 0.114708; times 2.09302 + 0.860951.
  CHECK(*summarize(scores, {.samples = 20000, .block = 1}).kl_mean.min_detectable == Approx(0.33884).epsilon(0.02));
}

TEST_CASE("a summary is exact on constant figures and its interval holds the value on noisy ones", "[unit]") {
  std::vector<TokenScore> scores(1024, {.nll_full = 1.0, .nll = 1.25, .kl = 0.5, .agrees = true});
  TextSummary t = summarize(scores);
  CHECK(t.perplexity_full.value == Approx(std::exp(1.0)));
  CHECK(t.delta_perplexity.value == Approx(std::exp(1.25) - std::exp(1.0)));
  REQUIRE(t.kl_mean.ci95);
  CHECK((*t.kl_mean.ci95)[0] == 0.5);
  CHECK(*t.kl_mean.min_detectable == 0.0);
  CHECK(t.top1_agreement.value == 1.0);
  CHECK(verdict_of(t) == Verdict::differs);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    scores[i].nll = 1.0 + (static_cast<double>((i * 7919) % 13) - 6.0) * 0.1;
    scores[i].kl = i == 100 ? 9.0 : 0.01;
  }
  t = summarize(scores, {.seed = 3});
  CHECK((*t.delta_perplexity.ci95)[0] < 0.0);
  CHECK((*t.delta_perplexity.ci95)[1] > 0.0);
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
  const TextSummary t = summarize(scores, {.block = 16});
  CHECK((*t.delta_perplexity.ci95)[0] > 0.0);  // seen, though perplexity itself is ten times less certain
  CHECK(*t.perplexity.min_detectable > 10 * *t.delta_perplexity.min_detectable);
}

TEST_CASE("Kendall's tau is 1 for equal rankings, -1 for opposite ones, 0 without an order", "[unit]") {
  const std::vector<double> up{1, 2, 3, 4, 5}, down{5, 4, 3, 2, 1}, flat{1, 1, 1, 1, 1}, mixed{1, 3, 2, 4, 5};
  CHECK(kendall_tau(up, up).value == 1.0);
  CHECK(kendall_tau(up, down).value == -1.0);
  CHECK(kendall_tau(up, flat).value == 0.0);
  CHECK(kendall_tau(up, mixed).value == Approx(0.8));
  CHECK_FALSE(kendall_tau(up, up).ci95);  // five things have no interval
  const std::vector<double> six{1, 2, 3, 4, 5, 6}, cheap_last{4, 6, 5, 1, 3, 2};
  REQUIRE(kendall_tau(six, six).ci95);
  CHECK((*kendall_tau(six, six).ci95)[0] == 1.0);
  // Between the halves all nine pairs disagree, inside each two of three agree.
  CHECK(kendall_tau(six, cheap_last).value == Approx((2.0 - 9.0) / 15.0));
  CHECK(kendall_tau(six, cheap_last, {}, std::vector<std::int64_t>{0, 0, 0, 1, 1, 1}).value == Approx(2.0 / 6.0));
  CHECK_THROWS_WITH(kendall_tau(up, std::vector<double>{1}), "rankings have 5 and 1 entries, must have as many, at least 2");
}

TEST_CASE("a share of trials has Wilson's interval, which is no point where all agree", "[unit]") {
  const Estimate all = share_of_trials(std::vector<double>(20, 1.0));
  CHECK(all.value == 1.0);
  CHECK((*all.ci95)[0] == Approx(20 / (20 + 1.959964 * 1.959964)));  // 0.8389
  CHECK((*all.ci95)[1] == Approx(1.0));
  const Estimate e = share_of_trials(std::vector<double>{1, 1, 0, 1, 0, 1, 1, 1, 0, 1});
  CHECK(e.value == 0.7);
  CHECK((*e.ci95)[0] == Approx(0.39678).epsilon(1e-4));
  CHECK((*e.ci95)[1] == Approx(0.89221).epsilon(1e-4));
  CHECK_THROWS_WITH(share_of_trials({}), "no trials were run");
}

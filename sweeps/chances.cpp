#include "sweeps/chances.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/arith64.hpp"
#include "core/errors.hpp"
#include "core/parallel.hpp"
#include "core/philox.hpp"
#include "sweeps/recommend_why.hpp"

namespace kvatlas::sweep {

namespace {

constexpr std::uint64_t kChanceSeed = 1;
constexpr double kTenth = 1.2815515655446004;  // a normal variable lies within this on either side in 80% of draws
constexpr int kLevels = 16;                    // of a known error: draws are sorted by it into so many equal parts

/// The logarithm of a rate by standard normal deviations.
class LogRate {
 public:
  explicit LogRate(const UncertainRate& r) : low_(num::log(r.low)), high_(num::log(r.high)), middle_(r.bounds ? (low_ + high_) / 2 : num::log(r.rate)) {}
  double at(double deviation) const { return middle_ + deviation / kTenth * (deviation < 0 ? middle_ - low_ : high_ - middle_); }

 private:
  double low_, high_, middle_;
};

/// What each choice loses against the best, by draw: 1 - rate / best.
struct Draws {
  std::size_t choices = 0;
  std::vector<double> own;     // [choice, draw]: the deviation that is its own
  std::vector<double> loss;    // [draw, choice]
};

Draws drawn(std::span<const UncertainRate> choices, std::uint64_t seed) {
  Draws d{.choices = choices.size(), .own = std::vector<double>(choices.size() * kChanceDraws), .loss = std::vector<double>(choices.size() * kChanceDraws)};
  // Stream 0 is what all share; a choice's stream is its place in the list.
  std::vector<double> shared(kChanceDraws);
  for (std::size_t k = 0; k < kChanceDraws; ++k) shared[k] = random_normal({.seed = seed}, k);
  for (std::size_t i = 0; i < choices.size(); ++i) {
    const double own = std::clamp(choices[i].own, 0.0, 1.0), of_shared = std::sqrt(1 - own), of_own = std::sqrt(own);
    const LogRate rate(choices[i]);
    for (std::size_t k = 0; k < kChanceDraws; ++k) {
      const double alone = random_normal({.seed = seed, .head = static_cast<std::uint32_t>(i + 1)}, k);
      d.own[i * kChanceDraws + k] = alone;
      d.loss[k * d.choices + i] = rate.at(of_shared * shared[k] + of_own * alone);
    }
  }
  for (std::size_t k = 0; k < kChanceDraws; ++k) {
    double* row = &d.loss[k * d.choices];
    const double best = *std::max_element(row, row + d.choices);
    for (std::size_t i = 0; i < d.choices; ++i) row[i] = 1 - num::exp(row[i] - best);
  }
  return d;
}

/// The least mean loss that one choice has over some draws.
double least_loss(const Draws& d, std::span<const std::size_t> draws) {
  std::vector<double> sums(d.choices);
  for (const std::size_t k : draws)
    for (std::size_t i = 0; i < d.choices; ++i) sums[i] += d.loss[k * d.choices + i];
  return *std::min_element(sums.begin(), sums.end()) / static_cast<double>(draws.size());
}

}  // namespace

ChanceFigures sample_chances(std::span<const UncertainRate> choices, std::uint64_t seed) {
  if (choices.empty()) throw InvalidArgument("choices are empty, must be at least one");
  for (const UncertainRate& c : choices)
    if (!(c.low > 0 && c.low <= c.rate && c.rate <= c.high)) throw InvalidArgument(cat("rate is ", c.rate, ", must be positive and within its interval (", c.low, " to ", c.high, ")"));
  const Draws d = drawn(choices, seed);
  ChanceFigures out;
  out.of.resize(choices.size());
  for (std::size_t k = 0; k < kChanceDraws; ++k)
    for (std::size_t i = 0; i < choices.size(); ++i) {
      const double loss = d.loss[k * d.choices + i];
      out.of[i].best += loss == 0 ? 1.0 / kChanceDraws : 0.0;
      out.of[i].regret += loss / kChanceDraws;
    }
  std::vector<std::size_t> order(kChanceDraws);
  std::iota(order.begin(), order.end(), std::size_t{0});
  out.regret = out.regret_measured = least_loss(d, order);
  for (std::size_t j = 0; j < choices.size(); ++j) {
    // Who knows j's error knows in which part of the draws he is, and chooses what is best there.
    const double* own = &d.own[j * kChanceDraws];
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [own](std::size_t a, std::size_t b) { return own[a] < own[b]; });
    double after = 0;
    for (std::size_t part = 0; part < kLevels; ++part) after += least_loss(d, std::span(order).subspan(part * (kChanceDraws / kLevels), kChanceDraws / kLevels)) / kLevels;
    if (after < out.regret_measured) out.regret_measured = after, out.measure = j;
  }
  return out;
}

void add_chances(const RecommendRequest& request, std::vector<Recommendation>& ranked, RecommendReport& report) {
  const auto may_be_advised = [](const Recommendation& r) { return r.recipe.canonical() == "full" || (!r.deployable.empty() && (r.quality.value || !r.forgets)); };
  std::vector<Recommendation*> speakers;
  for (Recommendation& r : ranked)
    if ((r.best_of_method || r.recipe.canonical() == "full") && r.figures.low_requests_per_s > 0) speakers.push_back(&r);
  // Matrices, host and prompts are common to all: only the time that a method's own kernels take is its own to be wrong about.
  std::vector<double> own_time(speakers.size());
  parallel_for(static_cast<std::int64_t>(speakers.size()), [&](std::int64_t at) {
    const auto i = static_cast<std::size_t>(at);
    sim::Deployment d = request.deployment;
    d.recipe = speakers[i]->recipe;
    const sim::WorkloadFigures& f = speakers[i]->figures;
    const Tokens middle = request.workload.prompt + Tokens(request.workload.output.value / 2);
    const sim::StepFigures s = sim::Evaluator(std::move(d)).step(request.workload.prompt, middle, static_cast<int>(std::max<std::int64_t>(1, f.concurrency)));
    own_time[i] = s.step_s > 0 ? (s.attention_s + s.method_s) / s.step_s * (1 - prefill_share(f, request.workload)) : 0;
  });
  const auto width = [](const Recommendation& r) { return num::log(r.figures.high_requests_per_s / r.figures.low_requests_per_s); };
  double common = 1e300;  // the narrowest interval is what even the best known format leaves open
  for (const Recommendation* r : speakers) common = std::min(common, width(*r));
  const auto choices_of = [&](bool offered, std::vector<std::size_t>& members) {
    std::vector<UncertainRate> choices;
    for (std::size_t i = 0; i < speakers.size(); ++i) {
      const Recommendation& r = *speakers[i];
      if (offered && !may_be_advised(r)) continue;
      const double shared = width(r) > 0 ? (1 - own_time[i]) * common / width(r) : 1;
      members.push_back(i);
      choices.push_back({.rate = std::clamp(r.figures.requests_per_s, r.figures.low_requests_per_s, r.figures.high_requests_per_s), .low = r.figures.low_requests_per_s, .high = r.figures.high_requests_per_s,
                         .own = 1 - shared * shared, .bounds = r.figures.evidence == sim::Evidence::uncalibrated_format});
    }
    return choices;
  };
  for (const bool offered : {false, true}) {
    std::vector<std::size_t> members;
    const std::vector<UncertainRate> choices = choices_of(offered, members);
    if (choices.empty()) continue;
    const ChanceFigures f = sample_chances(choices, kChanceSeed);
    for (std::size_t i = 0; i < members.size(); ++i) {
      speakers[members[i]]->chance = f.of[i];
      speakers[members[i]]->chance->among = static_cast<int>(members.size());
      speakers[members[i]]->chance->offered = offered;
    }
    if (!offered || f.regret_measured >= f.regret) continue;
    const Recommendation& r = *speakers[members[f.measure]];
    const sim::Deployment& d = request.deployment;
    const std::int64_t batch = std::max<std::int64_t>(1, ceil_div(r.figures.concurrency, d.dp));
    report.settle = Settle{.recipe = r.recipe.canonical(), .command = {}, .regret = f.regret, .regret_measured = f.regret_measured};
    report.settle->command = cat("kvatlas bench --model ", d.model->slug, " --method \"", r.recipe.canonical(), "\" --context ", request.workload.prompt.value + request.workload.output.value / 2, " --batch ", batch,
                                 d.tp > 1 ? cat(" --tp ", d.tp) : std::string());
  }
}

}  // namespace kvatlas::sweep

#include "simulator/breakeven.hpp"

#include <algorithm>
#include <cmath>
#include <fmt/core.h>
#include <functional>
#include <limits>
#include <vector>

#include "core/errors.hpp"
#include "core/interruption.hpp"

namespace kvatlas::sim {

namespace {

/// Positive where the method is ahead: the logarithm-free measure gain - 1.
using Lead = std::function<double(double)>;

struct Border {
  std::optional<double> at;   // the first point from which the lead stays
  bool ahead_at_end = false, ahead_throughout = false;
};

/// Scans from `low` to `high` in steps of at most a quarter octave, then halves the last interval in which the lead was won.
Border border_of(const Lead& lead, double low, double high, bool whole_numbers) {
  std::vector<double> points{low};
  while (points.back() < high) {
    const double next = points.back() * 1.189207115002721;  // 2^(1/4)
    points.push_back(std::min(high, whole_numbers ? std::max(points.back() + 1.0, std::floor(next)) : next));
  }
  std::size_t last_behind = points.size();
  for (std::size_t i = points.size(); i-- > 0;)
    if (!(lead(points[i]) > 0)) {
      last_behind = i;
      break;
    }
  if (last_behind == points.size()) return {.at = low, .ahead_at_end = true, .ahead_throughout = true};
  if (last_behind + 1 == points.size()) return {};
  double behind = points[last_behind], ahead = points[last_behind + 1];
  for (int i = 0; i < 48 && (whole_numbers ? ahead - behind > 1 : ahead > behind * (1 + 1e-6)); ++i) {
    const double middle = whole_numbers ? std::floor(behind + (ahead - behind) / 2) : behind + (ahead - behind) / 2;
    (lead(middle) > 0 ? ahead : behind) = middle;
  }
  return {.at = ahead, .ahead_at_end = true};
}

class Duel {
 public:
  explicit Duel(const BreakevenQuestion& q) : q_(q), own_(q.deployment), other_(other_of(q)) {}

  const Evaluator& own() const { return own_; }
  const Evaluator& other() const { return other_; }

  double gain(const Evaluator& own, const Evaluator& other, Tokens context, int batch) const {
    interruption_point();
    if (!q_.output) return other.step(context, batch).step_s / own.step(context, batch).step_s;
    const Workload w{.prompt = context, .output = *q_.output, .concurrency = batch};
    const WorkloadFigures a = own.workload(w), b = other.workload(w);
    if (!a.feasible) return 0;
    return b.feasible ? a.requests_per_s / b.requests_per_s : std::numeric_limits<double>::infinity();  // served by this one alone
  }
  /// Whether a workload of such prompts can be served at all; a step always can be timed.
  bool can_serve(Tokens context) const {
    return !q_.output || own_.workload({.prompt = context, .output = *q_.output, .concurrency = q_.batch}).feasible;
  }
  double gain(Tokens context, int batch) const { return gain(own_, other_, context, batch); }
  /// Of `batch` requests, those that memory lets an evaluator run at once; a step always runs them all.
  int in_flight(const Evaluator& e, Tokens context, int batch) const {
    if (!q_.output) return batch;
    return std::max(1, static_cast<int>(e.workload({.prompt = context, .output = *q_.output, .concurrency = batch}).concurrency));
  }

  /// The same on a GPU with another memory bandwidth.
  double gain_at(double bandwidth) const {
    Deployment own = q_.deployment, other = other_of(q_);
    own.gpu.hbm_bandwidth.value = other.gpu.hbm_bandwidth.value = bandwidth;
    return gain(Evaluator(std::move(own)), Evaluator(std::move(other)), q_.context, q_.batch);
  }

  std::string reason(double gain) const;

 private:
  static Deployment other_of(const BreakevenQuestion& q) {
    Deployment d = q.deployment;
    d.recipe = q.against;
    return d;
  }

  const BreakevenQuestion& q_;
  Evaluator own_, other_;
};

std::string ms(double seconds) { return fmt::format("{:.3g} ms", seconds * 1e3); }

std::string Duel::reason(double gain) const {
  const std::string own = q_.deployment.recipe.canonical(), other = q_.against.canonical();
  const std::string where = cat("at ", q_.context.value, q_.output ? " prompt tokens and " : " tokens and batch ", q_.batch, q_.output ? " in flight" : "");
  const int mine = in_flight(own_, q_.context, q_.batch), others = in_flight(other_, q_.context, q_.batch);
  const StepFigures a = own_.step(q_.context, mine), b = other_.step(q_.context, others);
  const auto change = [](const char* what, double from, double to) { return cat(what, " ", to >= from ? "+" : "-", ms(std::abs(to - from))); };
  const std::string parts = cat(change("attention", b.attention_s, a.attention_s), ", ", change("the method's own work", b.method_s, a.method_s), ", ",
                                change("the rest", b.matrix_s + b.other_s, a.matrix_s + a.other_s));
  if (q_.output)
    return cat(where, " ", own, gain <= 0 ? std::string(" serves nothing: it does not fit") : std::isinf(gain) ? cat(" serves what ", other, " has no memory for") : cat(" serves ", fmt::format("{:.3g}", gain), " times the requests/s of ", other), mine == others ? "; its decode step: " : cat("; memory holds ", mine, " of them at once against ", others, "; its decode step: "), parts, "; its prefill takes ",
               ms(own_.prefill_s(q_.context, 1)), " against ", ms(other_.prefill_s(q_.context, 1)));
  return cat(where, " a step of ", own, " takes ", ms(a.step_s), " against ", ms(b.step_s), " of ", other, ": ", parts, "; matrices and overheads that no cache changes take ",
             fmt::format("{:.0f} %", 100 * (b.matrix_s + b.other_s) / b.step_s), " of the latter");
}

void check(const BreakevenQuestion& q) {
  if (q.context.value < 1 || q.context > q.longest) throw InvalidArgument(cat("context is ", q.context.value, ", must be from 1 to the longest searched (", q.longest.value, ")"));
  if (q.batch < 1 || q.batch > q.largest) throw InvalidArgument(cat("batch is ", q.batch, ", must be from 1 to the largest searched (", q.largest, ")"));
}

}  // namespace

Breakeven breakeven(const BreakevenQuestion& q) {
  check(q);
  const Duel c(q);
  const std::string own = q.deployment.recipe.canonical(), other = q.against.canonical();
  Breakeven out;
  out.gain = c.gain(q.context, q.batch);
  out.evidence = c.own().step(q.context, q.batch).evidence;
  // Below 16 tokens there is nothing to compress; a gain below a thousandth is rounding of spans and pages.
  constexpr double kLeast = 1.001, kShortest = 16;
  double longest = static_cast<double>(q.longest.value);
  const double largest = std::max(c.in_flight(c.own(), q.context, q.largest), c.in_flight(c.other(), q.context, q.largest));
  const std::string most = largest < q.largest ? cat(static_cast<int>(largest), ", the most that fits") : cat(q.largest);
  std::string limit;
  if (!c.can_serve(q.longest)) {
    std::int64_t fits = 0, over = q.longest.value;
    while (over - fits > 1) {
      const std::int64_t middle = fits + (over - fits) / 2;
      (c.can_serve(Tokens(middle)) ? fits : over) = middle;
    }
    if (fits < 1) {
      out.context_why = out.batch_why = out.bandwidth_why = cat(own, " does not fit");
      out.reason = c.reason(0);
      return out;
    }
    longest = static_cast<double>(fits);
    limit = ", the longest that fits";
  }
  const auto last = static_cast<std::int64_t>(longest);
  const auto at_context = [&](double n) { return c.gain(Tokens(static_cast<std::int64_t>(n)), q.batch); };
  const auto at_batch = [&](double n) { return c.gain(q.context, static_cast<int>(n)); };

  const Border context = border_of([&](double n) { return at_context(n) - kLeast; }, std::min(kShortest, longest), longest, true);
  if (context.at) out.context = static_cast<std::int64_t>(*context.at);
  out.context_why = context.ahead_throughout ? cat("ahead at every context from ", *out.context, " to ", last, " tokens", limit)
                    : context.at             ? cat("ahead from ", *out.context, " tokens on, as far as ", last, limit)
                                             : cat("not ahead at ", last, " tokens", limit, ": ", fmt::format("{:.3g}", at_context(longest)), " times as fast");

  const Border batch = border_of([&](double n) { return at_batch(n) - kLeast; }, 1, largest, true);
  if (batch.at) out.batch = static_cast<std::int64_t>(*batch.at);
  out.batch_why = batch.ahead_throughout ? cat("ahead at every batch from 1 to ", most)
                  : batch.at             ? cat("ahead from batch ", *out.batch, " on, as far as ", most)
                                         : cat("not ahead at batch ", most, ": ", fmt::format("{:.3g}", at_batch(largest)), " times as fast");

  // Fewer bytes pay where memory is slow, fewer operations where it is fast.
  const double now = *q.deployment.gpu.hbm_bandwidth.value, slowest = now / 32, fastest = now * 32;
  const bool slow = c.gain_at(slowest) > kLeast, fast = c.gain_at(fastest) > kLeast;
  if (slow == fast) {
    out.bandwidth_why = cat(slow ? "ahead" : "not ahead", " at every bandwidth from ", fmt::format("{:.0f}", slowest / 1e9), " to ", fmt::format("{:.0f} GB/s", fastest / 1e9));
  } else {
    double ahead = slow ? slowest : fastest, behind = slow ? fastest : slowest;
    for (int i = 0; i < 40; ++i) {
      const double middle = std::sqrt(ahead * behind);
      (c.gain_at(middle) > kLeast ? ahead : behind) = middle;
    }
    out.bandwidth = ahead;
    out.wins_below = slow;
    out.bandwidth_why = cat("ahead where memory is ", slow ? "slower" : "faster", " than ", fmt::format("{:.0f} GB/s", ahead / 1e9), "; ", q.deployment.gpu.name, " has ", fmt::format("{:.0f}", now / 1e9));
  }
  out.reason = c.reason(out.gain);
  return out;
}

}  // namespace kvatlas::sim

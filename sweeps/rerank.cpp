#include "sweeps/rerank.hpp"

#include <algorithm>

#include "core/errors.hpp"
#include "core/parallel.hpp"
#include "simulator/serving/serving.hpp"

namespace kvatlas::sweep {

namespace {

constexpr double kKept = 0.9;          // share of requests that must keep the SLO
constexpr double kLengthSpread = 0.1;  // equal lengths would run in lockstep
constexpr std::uint64_t kSeed = 1;

struct Attempt {
  Served served;
  double kept = 0;
};

Attempt attempt(const RecommendRequest& request, const Recipe& recipe, std::int64_t concurrency) {
  const sim::Workload& w = request.workload;
  sim::ServingSetup setup{.deployment = request.deployment, .sequences = std::max<std::int64_t>(256, ceil_div(concurrency, request.deployment.dp)), .slo = w.slo};
  setup.deployment.recipe = recipe;
  sim::StreamRecipe stream{.requests = std::clamp<std::int64_t>(5 * concurrency, 240, 12000), .prompt = w.prompt, .output = w.output, .spread = kLengthSpread,
                           .prefix_hit = w.prefix_hit, .turns = w.turns, .warm = true, .seed = kSeed};
  w.rate ? stream.rate = *w.rate : stream.users = static_cast<int>(concurrency);
  const sim::ServingReport r = sim::serve(setup, sim::make_stream(stream));
  Attempt out{.served = {.requests_per_s = r.steady_goodput_per_s, .ttft_p99_s = r.ttft.p99, .tpot_p99_s = r.tpot.p99, .concurrency = concurrency, .preemptions = r.preemptions}};
  if (r.completed > 0 && r.steady_requests_per_s > 0) out.kept = r.steady_goodput_per_s / r.steady_requests_per_s;
  return out;
}

}  // namespace

std::optional<Served> served(const RecommendRequest& request, const Recipe& recipe, std::int64_t concurrency) {
  try {
    Attempt best = attempt(request, recipe, std::max<std::int64_t>(1, concurrency));
    const sim::Workload& w = request.workload;
    if (!w.rate && !w.concurrency && best.kept < kKept) {
      // The closed form knows means; prompts that ride with decodes make some requests slower than that.
      std::int64_t low = 0, high = concurrency;
      while (high - low > std::max<std::int64_t>(1, concurrency / 32)) {
        const std::int64_t middle = low + (high - low) / 2;
        const Attempt tried = attempt(request, recipe, middle);
        if (tried.served.requests_per_s > best.served.requests_per_s) best = tried;
        (tried.kept >= kKept ? low : high) = middle;
      }
    }
    return best.served;
  } catch (const InvalidArgument&) {  // nothing fits once a whole pass is reserved
    return std::nullopt;
  }
}

void rerank(const RecommendRequest& request, std::vector<Recommendation>& ranked) {
  const std::size_t n = std::min(kRerankedFirst, ranked.size());
  parallel_for(static_cast<std::int64_t>(ranked.size()), [&](std::int64_t i) {
    Recommendation& r = ranked[static_cast<std::size_t>(i)];
    if (static_cast<std::size_t>(i) < n || r.best_of_method) r.served = served(request, r.recipe, r.figures.concurrency);
  });
  const auto rate = [](const Recommendation& r) { return r.served ? r.served->requests_per_s : 0.0; };
  std::stable_sort(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(n), [&](const Recommendation& a, const Recommendation& b) { return rate(a) > rate(b); });
}

}  // namespace kvatlas::sweep

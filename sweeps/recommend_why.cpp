#include "sweeps/recommend_why.hpp"

#include <fmt/core.h>

#include "core/errors.hpp"

namespace kvatlas::sweep {

namespace {

std::string share(double x) { return fmt::format("{:.0f} %", x * 100); }
std::string times(double x) { return fmt::format("{:.2f}x", x); }
std::string ms(double seconds) { return fmt::format("{:.1f} ms", seconds * 1e3); }

const char* what_binds(sim::Bound bound) {
  switch (bound) {
    case sim::Bound::memory: return "memory bandwidth";
    case sim::Bound::unpack: return "unpacking of compressed values";
    case sim::Bound::tensor: return "tensor cores";
    case sim::Bound::vector: return "vector units";
    case sim::Bound::latency: return "launch latency";
    case sim::Bound::link: return "the link between GPUs";
    case sim::Bound::memory_capacity: return "memory capacity";
  }
  return "?";
}

}  // namespace

double prefill_share(const sim::WorkloadFigures& f, const sim::Workload& w) {
  const double decode = static_cast<double>(w.output.value) * f.step_s / static_cast<double>(f.concurrency > 0 ? f.concurrency : 1);
  return f.prefill_s + decode > 0 ? f.prefill_s / (f.prefill_s + decode) : 0;
}

std::string binding_sentence(const sim::WorkloadFigures& f, const sim::Workload& w, bool plain) {
  const double prefill = prefill_share(f, w);
  const bool one = f.concurrency == 1;
  if (prefill >= 0.5)
    return cat("prefill binds: it is ", share(prefill), " of a request's GPU time, so no ", plain ? "" : "further ", "change of decoding alone gains more than ", times(1 / prefill));
  if (f.bound == sim::Bound::memory_capacity)
    return cat("memory capacity binds: ", f.concurrency, one ? " request fits, " : " requests fit, ", share(1 - prefill), " of a request's GPU time is decoding");
  return cat("decoding binds (", share(1 - prefill), " of a request's GPU time): a step of ", f.concurrency, one ? " request" : " requests", " takes ", ms(f.step_s), ", limited by ", what_binds(f.bound));
}

std::string plain_sentence(const OfferedFates& f, const RecommendRequest& request) {
  if (f.asked == 0) return "the plain cache is the only one that was asked about";
  const std::string engine = request.deployable ? *request.deployable : "an engine";
  if (f.offered == 0) return cat("no other method that was asked about is offered by ", engine, " and can serve this");
  if (f.quality_refused == f.offered)
    return cat("no other method ", f.research || request.deployable ? cat("that ", engine, " offers ") : std::string(), "has accepted evidence (", spell_grades(request.quality_evidence), ") of quality of at least ", *request.min_quality);
  if (f.forgetful) return cat("no method that ", engine, " offers is worth it here without forgetting tokens");
  return cat("no method that ", engine, " offers ", request.min_quality ? "and whose quality is accepted " : "", "is worth it here");
}

std::string gain_sentence(const Recommendation& r, const std::optional<sim::WorkloadFigures>& plain, const sim::Workload& w) {
  const sim::WorkloadFigures& f = r.figures;
  std::string text;
  if (!plain) {
    text = cat("serves a workload that a plain cache cannot, with ", f.concurrency, " in flight");
  } else if (r.recipe.canonical() == "full") {
    text = "the plain cache, which everything here is compared with";
  } else {
    std::string how;
    if (f.concurrency > plain->concurrency) how = cat(f.concurrency, " in flight instead of ", plain->concurrency);
    if (f.step_s < plain->step_s) how += cat(how.empty() ? "" : ", ", "a step of ", ms(f.step_s), " instead of ", ms(plain->step_s));
    if (f.prefill_s < plain->prefill_s * 0.99) how += cat(how.empty() ? "" : ", ", "a prefill of ", ms(f.prefill_s), " instead of ", ms(plain->prefill_s));
    text = how.empty() ? "no slower than the plain cache" : how;
  }
  text += cat("; ", binding_sentence(f, w, r.recipe.canonical() == "full"));
  if (r.forgets) text += fmt::format("; keeps a cache of fixed size ({:.1f} % of the plain one) and forgets the rest", 100 / f.size_factor);
  if (!r.quality.value) text += "; quality unknown";
  std::string needs;
  for (const Rule& rule : r.recipe.rules())
    for (const Need n : rule.key.method->needs)
      if (needs.find(name_of(n)) == std::string::npos) needs += cat(needs.empty() ? "" : ", ", name_of(n));
  if (!needs.empty()) text += cat("; needs ", needs);
  return text;
}

std::string no_gain_sentence(double speedup, const sim::WorkloadFigures& f, const sim::WorkloadFigures& plain, const sim::Workload& w) {
  const double prefill = prefill_share(plain, w);
  if (f.prefill_s > plain.prefill_s * 1.02 && speedup < 1)
    return cat("slower than the plain cache (", times(speedup), "): its own work lengthens prefill from ", ms(plain.prefill_s), " to ", ms(f.prefill_s));
  if (prefill >= 0.8)
    return cat("no gain (", times(speedup), "): prefill is ", share(prefill), " of a request's GPU time and this method does not shorten it");
  if (f.step_s >= plain.step_s && f.concurrency <= plain.concurrency)
    return cat(speedup < 1 ? "slower than" : "no faster than", " the plain cache (", times(speedup), "): a step takes ", ms(f.step_s), " against ", ms(plain.step_s),
               ", limited by ", what_binds(f.bound));
  return cat("no gain (", times(speedup), "): ", binding_sentence(f, w, false));
}

}  // namespace kvatlas::sweep

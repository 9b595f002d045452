// A workload in closed form: one engine in steady state interleaves the prompts of new requests with the decode steps of
// those in flight. With c requests in flight, a cycle that finishes c of them costs c prefills and `output` steps.
#include <algorithm>
#include <cmath>
#include <fmt/core.h>

#include "core/errors.hpp"
#include "simulator/step_model.hpp"

namespace kvatlas::sim {

namespace {

/// What every concurrency of one workload shares.
struct Fixed {
  const StepModel* s;
  const Workload* w;
  Tokens prompt{0};          // of the middle turn, what came before it included
  Tokens mean_context{0};
  Tokens shared{0};          // of the prompt, by all requests: counted once by methods that share
  double prefill_s = 0, prefill_low = 0, prefill_high = 0, prefill_energy = 0;
  Bound prefill_bound = Bound::memory;
};

/// The steady state at one concurrency.
struct State {
  std::int64_t concurrency = 0;
  double step_s = 0, rate = 0, ttft_s = 0, tpot_s = 0, decode_share = 0;
};

Totals decode_of(const Fixed& f, std::int64_t concurrency) { return f.s->decode(f.prompt, f.mean_context, static_cast<int>(concurrency), f.shared); }

/// Requests finished per second when a prompt costs `prefill` and a step of all in flight `step`.
double rate_of(const Fixed& f, double concurrency, double prefill, double step) {
  const double own = concurrency / f.s->deployment().dp;
  return concurrency / (own * prefill + static_cast<double>(f.w->output.value) * step);
}

State state_at(const Fixed& f, std::int64_t concurrency) {
  State st{.concurrency = concurrency};
  st.step_s = decode_of(f, concurrency).seconds / f.s->emitted();
  const double own = static_cast<double>(concurrency) / f.s->deployment().dp;
  const double output = static_cast<double>(f.w->output.value);
  st.rate = rate_of(f, static_cast<double>(concurrency), f.prefill_s, st.step_s);
  const double cycle = own * f.prefill_s + output * st.step_s;
  st.decode_share = output * st.step_s / cycle;
  // While one request decodes, the prompts of the others pass through the same engine.
  st.tpot_s = st.step_s + std::max(0.0, own - 1.0) * f.prefill_s / output;
  // A new prompt waits for the step in flight and, as in a queue of equal services, for prompts before it.
  const double load = own * f.prefill_s / cycle;
  const double queue = std::min(std::max(0.0, own - 1.0) * f.prefill_s, load * f.prefill_s / (2.0 * (1.0 - load)));
  st.ttft_s = f.prefill_s + queue + st.step_s;
  return st;
}

bool meets(const State& st, const Slo& slo) {
  return (!slo.tpot_s || st.tpot_s <= *slo.tpot_s) && (!slo.ttft_s || st.ttft_s <= *slo.ttft_s);
}

/// The largest of [1, most] for which `holds`, which turns false once; 0 when it does not hold at 1.
template <class Holds>
std::int64_t last_that(std::int64_t most, Holds&& holds) {
  std::int64_t low = 0, high = most + 1;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (holds(middle) ? low : high) = middle;
  }
  return low;
}

void check(const Workload& w) {
  check_sizes(w.prompt, 1);
  if (w.output.value < 1 || w.output.value > (std::int64_t{1} << 30)) throw InvalidArgument(cat("output is ", w.output.value, ", must be from 1 to 1G tokens"));
  check_sizes(w.prompt + w.output, 1);
  if (!(w.prefix_hit >= 0 && w.prefix_hit <= 1)) throw InvalidArgument(cat("prefix_hit is ", w.prefix_hit, ", must be from 0 to 1"));
  if (w.turns < 1 || w.turns > 1000) throw InvalidArgument(cat("turns is ", w.turns, ", must be from 1 to 1000"));
  if (w.rate && !(*w.rate > 0 && std::isfinite(*w.rate))) throw InvalidArgument(cat("rate is ", *w.rate, ", must be positive requests/s"));
  if (w.concurrency && *w.concurrency < 1) throw InvalidArgument(cat("concurrency is ", *w.concurrency, ", must be at least 1"));
  if (w.rate && w.concurrency) throw InvalidArgument("rate and concurrency are both given; a workload takes one of them");
  for (const auto& [name, limit] : {std::pair{"ttft", w.slo.ttft_s}, std::pair{"tpot", w.slo.tpot_s}})
    if (limit && !(*limit > 0)) throw InvalidArgument(cat("slo ", name, " is ", *limit, " s, must be positive"));
}

Fixed prepare(const StepModel& s, const Workload& w) {
  Fixed f{.s = &s, .w = &w};
  // The middle turn stands for all: half of the other turns lie before it.
  const Tokens past((w.turns - 1) * (w.prompt.value + w.output.value) / 2);
  f.prompt = past + w.prompt;
  f.mean_context = f.prompt + Tokens(ceil_div(w.output.value, 2));
  check_sizes(s, f.prompt + w.output, 1);
  const double found = s.prefix_credit() * (static_cast<double>(past.value) + w.prefix_hit * static_cast<double>(w.prompt.value));
  const std::int64_t page = s.engine().page.value;
  const Tokens hit(std::min(f.prompt.value - 1, static_cast<std::int64_t>(found)) / page * page);  // whole pages only
  if (s.prefix_credit() > 0 && w.turns == 1) f.shared = Tokens(static_cast<std::int64_t>(w.prefix_hit * static_cast<double>(w.prompt.value)) / page * page);
  const Totals t = s.prefill(f.prompt, 1);
  double share = 1;
  if (hit.value > 0) {
    // The rest still attends to what was found, and pays at least what it would cost alone.
    const double rest = std::max(t.seconds - s.prefill(hit, 1).seconds, s.prefill(f.prompt - hit, 1).seconds);
    share = std::min(1.0, rest / t.seconds);
  }
  const Interval i = s.interval(f.prompt, t);
  f.prefill_s = t.seconds * share;
  f.prefill_low = i.low * share;
  f.prefill_high = i.high * share;
  f.prefill_energy = s.energy_j(t) * share / s.deployment().dp;
  f.prefill_bound = t.bound();
  return f;
}

std::string slo_sentence(const State& st, const Slo& slo) {
  const auto ms = [](double seconds) { return fmt::format("{:.1f} ms", seconds * 1e3); };
  if (slo.tpot_s && st.tpot_s > *slo.tpot_s)
    return cat("tpot is ", ms(st.tpot_s), " with ", st.concurrency, st.concurrency == 1 ? " request" : " requests", " in flight, the SLO is ", ms(*slo.tpot_s));
  return cat("ttft is ", ms(st.ttft_s), " with ", st.concurrency, st.concurrency == 1 ? " request" : " requests", " in flight, the SLO is ", ms(slo.ttft_s.value_or(0)));
}

}  // namespace

WorkloadFigures Evaluator::workload(const Workload& w) const {
  check(w);
  const StepModel& s = model();
  const Fixed f = prepare(s, w);
  const Tokens longest = f.prompt + w.output;
  constexpr std::int64_t kMostInFlight = 4096;
  const std::int64_t room = std::min(kMostInFlight, s.max_batch(f.prompt, longest, f.shared));
  WorkloadFigures out;
  out.prefill_s = f.prefill_s;
  out.size_factor = size_factor(f.prompt, f.mean_context);
  if (room < 1) {
    out.why_not = memory(f.prompt, longest, 1).binding;
    out.peak_bytes = s.memory(f.prompt, longest, 1).total();
    out.bound = Bound::memory_capacity;
    out.evidence = s.evidence(f.mean_context, decode_of(f, 1));
    return out;
  }

  const auto within = [&](std::int64_t c) { return meets(state_at(f, c), w.slo); };
  State st;
  double waiting = 0;  // requests of a fixed concurrency that do not fit and queue
  bool memory_limits = false;
  out.feasible = true;
  if (w.concurrency) {
    const std::int64_t c = std::min<std::int64_t>(*w.concurrency, room);
    memory_limits = *w.concurrency > c;
    waiting = static_cast<double>(*w.concurrency - c);
    st = state_at(f, c);
    st.ttft_s += waiting / st.rate;
  } else {
    const std::int64_t most = std::max<std::int64_t>(1, last_that(room, within));
    st = state_at(f, most);
    // A tile of a matrix product that just overflowed may cost more than its requests bring.
    for (const std::int64_t tile : {128, 64, 32, 16})
      if (most > tile)
        if (const State smaller = state_at(f, most / tile * tile); smaller.rate > st.rate) st = smaller;
    memory_limits = most == room && room < kMostInFlight;
    if (w.rate) {
      if (st.rate < *w.rate) {
        out.feasible = false;
        out.why_not = cat("rate is ", fmt::format("{:.3g}", *w.rate), " requests/s, ", s.deployment().gpu.name, " serves at most ",
                          fmt::format("{:.3g}", st.rate), memory_limits ? " before memory is full" : " within the SLO");
      } else {
        const std::int64_t enough = last_that(st.concurrency, [&](std::int64_t c) { return state_at(f, c).rate < *w.rate; }) + 1;
        st = state_at(f, std::min(enough, st.concurrency));
        memory_limits = false;
      }
    }
  }
  if (out.feasible && !meets(st, w.slo)) {
    out.feasible = false;
    out.why_not = slo_sentence(st, w.slo);
  }

  const Totals decode = decode_of(f, st.concurrency);
  const Interval i = s.interval(f.mean_context, decode);
  const double rounds = 1.0 / s.emitted(), c = static_cast<double>(st.concurrency), output = static_cast<double>(w.output.value);
  const bool offered = w.rate && out.feasible;
  out.requests_per_s = offered ? *w.rate : st.rate;
  out.low_requests_per_s = rate_of(f, c, f.prefill_high, i.high * rounds);
  out.high_requests_per_s = rate_of(f, c, f.prefill_low, i.low * rounds);
  if (offered) {
    out.low_requests_per_s = std::min(out.low_requests_per_s, *w.rate);
    out.high_requests_per_s = *w.rate;
  }
  out.tokens_per_s = out.requests_per_s * output;
  out.ttft_s = st.ttft_s;
  out.tpot_s = st.tpot_s;
  out.step_s = st.step_s;
  out.concurrency = st.concurrency;
  const MemoryTerms m = s.memory(f.prompt, longest, static_cast<int>(st.concurrency), f.shared);
  out.cache_bytes = m.cache * s.gpus();
  out.peak_bytes = m.total();
  out.energy_j_per_token = f.prefill_energy / output + s.energy_j(decode) * rounds / c;
  if (const Figure& price = deployment().gpu.usd_per_hour; price.known() && out.tokens_per_s > 0)
    out.usd_per_mtok = *price.value * s.gpus() / 3600.0 / out.tokens_per_s * 1e6;
  out.evidence = i.evidence;
  out.bound = st.decode_share < 0.5 ? f.prefill_bound : memory_limits ? Bound::memory_capacity : decode.bound();
  return out;
}

}  // namespace kvatlas::sim

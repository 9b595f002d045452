// Synthetic streams: Poisson arrivals or users in a closed loop, fixed or spread lengths, common prefixes, conversations.
#include <cmath>

#include "core/arith64.hpp"
#include "core/errors.hpp"
#include "core/interruption.hpp"
#include "core/philox.hpp"
#include "simulator/serving/request.hpp"

namespace kvatlas::sim {

namespace {

constexpr std::int64_t kMostRequests = 50'000'000;
constexpr std::uint64_t kCommonPrefix = 1;

// Which random sequence a draw belongs to; what is added later cannot change the others.
enum Draw : std::uint32_t { draw_arrival = 1, draw_prompt = 2, draw_output = 3 };

double uniform(std::uint64_t seed, Draw use, std::int64_t i) {
  // In (0, 1): a logarithm is taken of it.
  return (static_cast<double>(random_word({.seed = seed, .layer = use}, static_cast<std::uint64_t>(i))) + 0.5) * 0x1p-32;
}

std::int32_t length(Tokens mean, double spread, std::uint64_t seed, Draw use, std::int64_t i) {
  if (spread == 0) return static_cast<std::int32_t>(mean.value);
  const double factor = 1.0 + spread * (2.0 * uniform(seed, use, i) - 1.0);
  return static_cast<std::int32_t>(std::max(1.0, std::floor(factor * static_cast<double>(mean.value) + 0.5)));
}

void check(const StreamRecipe& r) {
  if (r.requests < 1 || r.requests > kMostRequests) throw InvalidArgument(cat("requests is ", r.requests, ", must be from 1 to ", kMostRequests));
  if (r.turns < 1 || r.turns > 1000) throw InvalidArgument(cat("turns is ", r.turns, ", must be from 1 to 1000"));
  for (const auto& [name, n] : {std::pair{"prompt", r.prompt}, std::pair{"output", r.output}})
    if (n.value < 1 || n.value * r.turns > (std::int64_t{1} << 26)) throw InvalidArgument(cat(name, " is ", n.value, ", must be from 1 to 64M tokens, all turns together"));
  if (!(r.spread >= 0 && r.spread <= 1)) throw InvalidArgument(cat("spread is ", r.spread, ", must be from 0 to 1"));
  if (!(r.prefix_hit >= 0 && r.prefix_hit <= 1)) throw InvalidArgument(cat("prefix_hit is ", r.prefix_hit, ", must be from 0 to 1"));
  if (r.users < 0 || r.users > (1 << 20)) throw InvalidArgument(cat("concurrency is ", r.users, ", must be from 1 to ", 1 << 20));
  if (r.users == 0 && !(r.rate > 0 && std::isfinite(r.rate))) throw InvalidArgument(cat("rate is ", r.rate, ", must be positive requests/s"));
}

}  // namespace

Stream make_stream(const StreamRecipe& r) {
  check(r);
  Stream s;
  s.users = r.users;
  s.requests.resize(static_cast<std::size_t>(r.requests));
  const auto common = static_cast<std::int32_t>(std::floor(r.prefix_hit * static_cast<double>(r.prompt.value)));
  if (r.warm && common > 0) s.warm_segment = kCommonPrefix, s.warm_tokens = common;
  double clock = 0;
  std::int32_t past = 0;
  std::uint32_t chain = 0;  // first segment of the conversation
  for (std::int64_t i = 0; i < r.requests; ++i) {
    interruption_point();
    Request& q = s.requests[static_cast<std::size_t>(i)];
    const bool opens = i % r.turns == 0;
    if (opens) {
      // Conversations arrive at rate / turns, so that requests arrive at the rate.
      if (r.users == 0) clock -= num::log(uniform(r.seed, draw_arrival, i)) / r.rate * r.turns;
      past = 0;
      chain = static_cast<std::uint32_t>(s.segments.size());
      if (common > 0) s.segments.push_back({kCommonPrefix, common});
    }
    const std::int32_t fresh = std::max(common, length(r.prompt, r.spread, r.seed, draw_prompt, i));
    q.arrive_s = clock;
    q.prompt = past + fresh;
    q.output = length(r.output, r.spread, r.seed, draw_output, i);
    q.later_turn = !opens;
    q.first_segment = chain;
    q.segments = static_cast<std::uint32_t>(s.segments.size()) - chain;
    if (r.turns > 1 && (i + 1) % r.turns != 0 && i + 1 < r.requests) {
      q.next = i + 1;
      q.output_segment = kCommonPrefix + 1 + static_cast<std::uint64_t>(i);
      const std::int32_t known = past == 0 ? (common > 0 ? common : 0) : past;
      s.segments.push_back({q.output_segment, q.prompt + q.output - known});
    }
    past = q.prompt + q.output;
  }
  return s;
}

}  // namespace kvatlas::sim

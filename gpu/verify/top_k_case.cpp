#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/kernels/top_k_traffic.hpp"
#include "core/philox.hpp"
#include "gpu/kernels/selection_shapes.hpp"
#include "gpu/verify/parts.hpp"
#include "gpu/verify/selection_case.hpp"
#include "reference/primitives/selection.hpp"

namespace kvatlas::gpu {

namespace {

template <TopKShape S>
constexpr TopKInstance instance() {
  return {S, [](Executor& e, const Launch& l, const Schedule& s, const TopKArgs<SimCtx>& a) { return simulate(e, l, s, [&a](SimCtx& c) { top_k<S>(c, a); }); }};
}
template <std::size_t... I>
constexpr std::array<TopKInstance, sizeof...(I)> all(std::index_sequence<I...>) {
  return {instance<kTopKShapes[I]>()...};
}
constexpr auto kInstances = all(std::make_index_sequence<std::size(kTopKShapes)>{});

}  // namespace

std::span<const TopKInstance> top_k_instances() { return kInstances; }

std::vector<float> draw_scores(std::int64_t rows, std::int64_t candidates, std::uint64_t seed) {
  std::vector<float> scores;
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t t = 0; t < candidates; ++t) {
      const RandomStream stream{.seed = seed, .head = static_cast<std::uint32_t>(row)};
      auto x = static_cast<float>(random_normal(stream, static_cast<std::uint64_t>(t)));
      if (row % 4 == 1) x = num::rint(x);                                 // many ties, zeros of both signs
      if (row % 4 == 2) x = 0.5F;                                         // ties alone
      if (row % 4 == 3) x = num::float_of(0x3F800000U + (num::bits_of(x) & 0x7FU));  // keys that differ in their last bits
      if (t % 53 == 7) x = t % 2 == 0 ? -num::infinity() : num::infinity();
      if (t % 31 == 4) x = 1e-42F;                                        // subnormal
      scores.push_back(x);
    }
  return scores;
}

Verdict verify_top_k(const TopKInstance& i, const TopKCase& of, std::span<const Schedule> schedules) {
  const std::int64_t candidates = of.context - of.window, k = of.budget - of.window;
  const kernels::TopKLaunch launch{.rows = of.rows, .candidates = candidates, .stride = round_up(candidates, 4), .k = k, .window = of.window, .threads = i.shape.threads};
  launch.check();
  const std::vector<float> scores = of.scores.empty() ? draw_scores(of.rows, candidates, of.seed) : of.scores;
  if (static_cast<std::int64_t>(scores.size()) != of.rows * candidates) throw InvalidArgument(cat("scores has ", scores.size(), " values, must have ", of.rows * candidates));
  Verdict v{.kernel = "top_k", .format = "f32", .shape = cat("rows=", of.rows, " context=", of.context, " budget=", of.budget, " window=", of.window, " threads=", i.shape.threads)};
  v.shared_bytes = i.shape.shared_bytes();
  std::vector<std::int32_t> want;
  std::vector<float> padded(static_cast<std::size_t>(of.rows * launch.stride));
  for (std::int64_t row = 0; row < of.rows; ++row) {
    const auto own = std::span(scores).subspan(static_cast<std::size_t>(row * candidates), static_cast<std::size_t>(candidates));
    std::ranges::copy(own, padded.begin() + row * launch.stride);
    for (const std::int64_t slot : with_tail(kvatlas::top_k(own, k), candidates, of.context)) want.push_back(static_cast<std::int32_t>(slot));
  }
  v.planned = launch.traffic(want);
  v.floor_bytes = launch.floor_bytes();
  for (const Schedule& schedule : schedules) {
    DeviceMemory memory;
    TopKArgs<SimCtx> a;
    const auto uploaded = memory.upload_mutable<float>("scores", padded);
    for (std::int64_t row = 0; row < of.rows; ++row)  // nobody may read what stands between rows
      DeviceMemory::forget(uploaded, (row * launch.stride + candidates) * 4, (launch.stride - candidates) * 4);
    a.scores = uploaded;
    a.chosen = memory.allocate<std::int32_t>("chosen", static_cast<std::int64_t>(want.size()));
    a.candidates = candidates;
    a.stride = launch.stride;
    a.k = k;
    a.window = of.window;
    Executor executor;
    const LaunchReport r = i.run(executor, {.grid = {of.rows}, .threads = i.shape.threads, .shared_bytes = v.shared_bytes}, schedule, a);
    note_launch(v, r, schedule);
    if (!r.completed) return v.bit_exact = false, v;
    try {
      const auto got = memory.download(a.chosen, static_cast<std::int64_t>(want.size()));
      v.output_hash = hash_bytes(std::as_bytes(std::span(got)));
      const auto [x, y] = std::ranges::mismatch(got, want);
      if (x == got.end()) continue;
      v.bit_exact = false;
      if (v.why.empty()) v.why = cat("chosen[", x - got.begin(), "] is ", *x, ", the reference has ", *y);
    } catch (const InvalidArgument& unwritten) {
      v.bit_exact = false;
      if (v.why.empty()) v.why = unwritten.what();
    }
  }
  return v;
}

}  // namespace kvatlas::gpu

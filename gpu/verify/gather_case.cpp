#include <algorithm>
#include <array>
#include <iterator>
#include <numeric>
#include <utility>

#include "core/errors.hpp"
#include "core/kernels/gather_traffic.hpp"
#include "core/philox.hpp"
#include "gpu/kernels/selection_shapes.hpp"
#include "gpu/verify/parts.hpp"
#include "gpu/verify/selection_case.hpp"

namespace kvatlas::gpu {

namespace {

template <GatherShape S>
constexpr GatherInstance instance() {
  return {S, [](Executor& e, const Launch& l, const Schedule& s, const GatherArgs<SimCtx>& a) { return simulate(e, l, s, [&a](SimCtx& c) { row_gather<S>(c, a); }); }};
}
template <std::size_t... I>
constexpr std::array<GatherInstance, sizeof...(I)> all(std::index_sequence<I...>) {
  return {instance<kGatherShapes[I]>()...};
}
constexpr auto kInstances = all(std::make_index_sequence<std::size(kGatherShapes)>{});

/// What a compact cache holds.
struct Rows {
  std::vector<std::uint16_t> k, v;
  std::vector<std::int32_t> positions;
};

/// The reference: a copy.
Rows compacted(const Rows& from, const GatherCase& of, int dim) {
  Rows out;
  for (std::size_t h = 0; h + 1 < of.starts.size(); ++h)
    for (std::int32_t i = of.starts[h]; i < of.starts[h + 1]; ++i) {
      const std::int64_t row = static_cast<std::int64_t>(h) * of.context + of.kept[static_cast<std::size_t>(i)];
      out.k.insert(out.k.end(), from.k.begin() + row * dim, from.k.begin() + (row + 1) * dim);
      out.v.insert(out.v.end(), from.v.begin() + row * dim, from.v.begin() + (row + 1) * dim);
      out.positions.push_back(from.positions[static_cast<std::size_t>(row)]);
    }
  return out;
}

template <class T>
void compare(Verdict& v, const DeviceMemory& memory, GlobalPtr<T> got_at, const std::vector<T>& want, const char* what) {
  if (want.empty()) return;
  const auto got = memory.download(got_at, static_cast<std::int64_t>(want.size()));
  v.output_hash = hash_bytes(std::as_bytes(std::span(got)), v.output_hash);
  const auto [a, b] = std::ranges::mismatch(got, want);
  if (a == got.end()) return;
  v.bit_exact = false;
  if (v.why.empty()) v.why = cat(what, "[", a - got.begin(), "] is ", *a, ", the reference has ", *b);
}

}  // namespace

std::span<const GatherInstance> gather_instances() { return kInstances; }

GatherCase draw_gather(std::int64_t heads, std::int64_t context, std::int64_t rows, std::uint64_t seed) {
  GatherCase out{.context = context, .starts = {0}, .kept = {}, .seed = seed};
  for (std::int64_t h = 0; h < heads; ++h) {
    const RandomStream stream{.seed = seed, .head = static_cast<std::uint32_t>(h)};
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(context));
    std::iota(tokens.begin(), tokens.end(), 0);
    const auto draw = [&](std::int32_t t) -> std::uint32_t { return t == 0 || t == context - 1 ? 0U : random_word(stream, static_cast<std::uint64_t>(t)) | 1U; };
    std::ranges::stable_sort(tokens, {}, draw);
    tokens.resize(static_cast<std::size_t>(std::clamp<std::int64_t>(rows - h, 0, context)));
    std::ranges::sort(tokens);
    out.kept.insert(out.kept.end(), tokens.begin(), tokens.end());
    out.starts.push_back(static_cast<std::int32_t>(out.kept.size()));
  }
  return out;
}

Verdict verify_gather(const GatherInstance& i, const GatherCase& of, std::span<const Schedule> schedules) {
  const int dim = i.shape.dim;
  const kernels::GatherLaunch launch{.dim = dim, .context = of.context, .starts = of.starts, .kept = of.kept};
  launch.check();
  Verdict v{.kernel = "row_gather", .format = "bf16/fp16", .shape = cat("heads=", launch.heads(), " context=", of.context, " kept=", of.kept.size(), " dim=", dim)};
  v.planned = launch.traffic();
  v.floor_bytes = launch.floor_bytes();
  const std::int64_t tokens = launch.heads() * of.context, rows = static_cast<std::int64_t>(of.kept.size());
  Rows from{.k = bits_of_rows(draw_rows(tokens, dim, Dtype::bf16, of.seed).view(), Dtype::bf16),
            .v = bits_of_rows(draw_rows(tokens, dim, Dtype::bf16, of.seed + 1).view(), Dtype::bf16), .positions = {}};
  for (std::int64_t t = 0; t < tokens; ++t) from.positions.push_back(static_cast<std::int32_t>(t % of.context * 3 + t / of.context));
  const Rows want = compacted(from, of, dim);
  for (const Schedule& schedule : schedules) {
    DeviceMemory memory;
    GatherArgs<SimCtx> a;
    a.starts = memory.upload("starts", of.starts);
    a.kept = memory.upload("kept", of.kept);
    a.k = memory.upload("k", from.k);
    a.v = memory.upload("v", from.v);
    a.positions = memory.upload("positions", from.positions);
    a.k_out = memory.allocate<std::uint16_t>("k_out", rows * dim);
    a.v_out = memory.allocate<std::uint16_t>("v_out", rows * dim);
    a.positions_out = memory.allocate<std::int32_t>("positions_out", rows);
    a.context = of.context;
    Executor executor;
    const LaunchReport r = i.run(executor, {.grid = {ceil_div(launch.most_rows(), kRowsOfBlock), launch.heads()}, .threads = kGatherThreads}, schedule, a);
    note_launch(v, r, schedule);
    if (!r.completed) return v.bit_exact = false, v;
    try {
      v.output_hash = hash_bytes({});
      compare(v, memory, a.k_out, want.k, "k");
      compare(v, memory, a.v_out, want.v, "v");
      compare(v, memory, a.positions_out, want.positions, "positions");
    } catch (const InvalidArgument& unwritten) {
      v.bit_exact = false;
      if (v.why.empty()) v.why = unwritten.what();
    }
  }
  return v;
}

}  // namespace kvatlas::gpu

#include <array>
#include <iterator>
#include <numeric>
#include <utility>

#include "core/errors.hpp"
#include "core/kernels/merge_traffic.hpp"
#include "core/kernels/page_bounds_traffic.hpp"
#include "core/span_rule.hpp"
#include "gpu/kernels/update_shapes.hpp"
#include "gpu/verify/parts.hpp"
#include "gpu/verify/update_case.hpp"
#include "reference/primitives/attention.hpp"
#include "reference/retrieval/quest/pages.hpp"

namespace kvatlas::gpu {

namespace {

template <PageBoundsShape S>
constexpr PageBoundsInstance bounds_instance() {
  return {S, [](Executor& e, const Launch& l, const Schedule& s, const PageBoundsArgs<SimCtx>& a) { return simulate(e, l, s, [&a](SimCtx& c) { page_bounds<S>(c, a); }); }};
}
template <std::size_t... I>
constexpr std::array<PageBoundsInstance, sizeof...(I)> all_bounds(std::index_sequence<I...>) {
  return {bounds_instance<kPageBoundsShapes[I]>()...};
}
constexpr auto kBoundsInstances = all_bounds(std::make_index_sequence<std::size(kPageBoundsShapes)>{});

template <PrefixMergeShape S>
constexpr PrefixMergeInstance prefix_instance() {
  return {S, [](Executor& e, const Launch& l, const Schedule& s, const PrefixMergeArgs<SimCtx>& a) { return simulate(e, l, s, [&a](SimCtx& c) { prefix_merge<S>(c, a); }); }};
}
template <std::size_t... I>
constexpr std::array<PrefixMergeInstance, sizeof...(I)> all_prefix(std::index_sequence<I...>) {
  return {prefix_instance<kPrefixMergeShapes[I]>()...};
}
constexpr auto kPrefixInstances = all_prefix(std::make_index_sequence<std::size(kPrefixMergeShapes)>{});

/// Partial results of one part for `rows` query rows: what a shared attention kernel leaves, and the part whole.
struct PartResults {
  std::vector<float> state, partial;  // [rows][spans]
  std::vector<SoftmaxPart> whole;     // [rows]
  std::int32_t spans = 0;
};
PartResults part_results(View<const float> q, const Array& k, const Array& v, float scale) {
  PartResults out;
  const std::int64_t tokens = k.view().dim(0), length = span_length(tokens);
  out.spans = static_cast<std::int32_t>(span_count(tokens));
  for (std::int64_t row = 0; row < q.dim(0); ++row) {
    std::vector<float> x(static_cast<std::size_t>(tokens));
    logits(q.row(row), k.view(), scale, x);
    out.whole.push_back(softmax_part(x, v.view()));
    for (std::int64_t first = 0; first < tokens; first += length) {
      const std::int64_t count = std::min(length, tokens - first);
      const SoftmaxPart span = softmax_part(std::span(x).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)), v.view().slice(0, first, count));
      out.state.push_back(span.max);
      out.state.push_back(span.sum);
      out.partial.insert(out.partial.end(), span.acc.begin(), span.acc.end());
    }
  }
  return out;
}

}  // namespace

std::span<const PageBoundsInstance> page_bounds_instances() { return kBoundsInstances; }
std::span<const PrefixMergeInstance> prefix_merge_instances() { return kPrefixInstances; }

Verdict verify_page_bounds(const PageBoundsInstance& i, const PageBoundsCase& of, std::span<const Schedule> schedules) {
  const PageBoundsShape& s = i.shape;
  kernels::PageBoundsLaunch launch{.dim = s.dim, .heads = of.heads, .page = of.page, .context = of.context, .first = of.first};
  launch.page_capacity = of.page > 0 ? launch.pages() + 1 : 0;
  launch.page_stride = (of.paged ? of.heads : 1) * of.page * s.dim;
  launch.head_stride = (of.paged ? 1 : launch.page_capacity) * of.page * s.dim;
  launch.check();
  Verdict v{.kernel = "page_bounds", .format = s.dtype == Dtype::bf16 ? "bf16" : "fp16",
            .shape = cat("heads=", of.heads, " context=", of.context, " page=", of.page, " first=", of.first, " dim=", s.dim, of.paged ? " paged" : "")};
  const std::int64_t pages = launch.pages();
  std::vector<std::int32_t> table;  // a pool's pages in another order, one of them somebody else's
  for (std::int64_t p = 0; p < pages; ++p) table.push_back(static_cast<std::int32_t>(of.paged ? pages - p : p));
  launch.table = table;
  std::vector<std::uint16_t> keys(static_cast<std::size_t>((pages + 1) * of.heads * of.page * s.dim), 0x7FFF), want(static_cast<std::size_t>(of.heads * launch.page_capacity * 2 * s.dim), 0x1234);
  for (std::int64_t h = 0; h < of.heads; ++h) {
    const Array rows = draw_rows(of.context, s.dim, s.dtype, of.seed + static_cast<std::uint64_t>(h) * 31);
    const auto bits = bits_of_rows(rows.view(), s.dtype);
    for (std::int64_t p = 0; p < pages; ++p) {
      const std::int64_t count = std::min(of.page, of.context - p * of.page);
      std::copy_n(bits.begin() + p * of.page * s.dim, count * s.dim, keys.begin() + table[static_cast<std::size_t>(p)] * launch.page_stride + h * launch.head_stride);
      if (p < of.first) continue;
      std::vector<std::int64_t> of_page(static_cast<std::size_t>(count));
      std::iota(of_page.begin(), of_page.end(), p * of.page);
      const quest::Bounds bounds = quest::bounds_of(rows.view(), of_page);
      auto to = want.begin() + (h * launch.page_capacity + p) * 2 * s.dim;
      for (const std::vector<float>* side : {&bounds.max, &bounds.min}) {
        const auto own = bits_of_rows(View<const float>(side->data(), {1, s.dim}), s.dtype);
        to = std::copy(own.begin(), own.end(), to);
      }
    }
  }
  v.planned = launch.traffic();
  v.floor_bytes = launch.floor_bytes();
  const std::vector<std::uint16_t> before(want.size(), 0x1234);  // bounds that the launch leaves alone
  for (const Schedule& schedule : schedules) {
    DeviceMemory memory;
    PageBoundsArgs<SimCtx> a;
    a.k = memory.upload("k", keys);
    a.table = memory.upload("table", table);
    a.bounds = memory.upload_mutable<std::uint16_t>("bounds", before);
    a.page_stride = launch.page_stride;
    a.head_stride = launch.head_stride;
    a.page = of.page;
    a.context = of.context;
    a.first = of.first;
    a.page_capacity = launch.page_capacity;
    Executor executor;
    const LaunchReport r = i.run(executor, {.grid = {ceil_div(pages - of.first, kPageBoundsWarps), of.heads}, .threads = kPageBoundsThreads}, schedule, a);
    note_launch(v, r, schedule);
    if (!r.completed) return v.bit_exact = false, v;
    v.output_hash = hash_bytes({});
    compare_buffer<std::uint16_t>(v, memory, a.bounds, want, "bounds");
  }
  return v;
}

Verdict verify_prefix_merge(const PrefixMergeInstance& i, const PrefixMergeCase& of, std::span<const Schedule> schedules) {
  const PrefixMergeShape& s = i.shape;
  const auto sequences = static_cast<std::int64_t>(of.own.size());
  const auto levels = static_cast<int>(of.shared.size()) + 1;
  const float scale = logit_scale(uniform_shape(1, 1, 1, s.dim, s.dtype).classes.front());
  Array queries = draw_rows(sequences * of.rows, s.dim, s.dtype, of.seed + 7);
  for (float& x : queries.values()) x *= 0.05F;  // attention that spreads over many tokens
  std::vector<PrefixPart> parts(static_cast<std::size_t>(sequences * levels));
  std::vector<float> state, partial;
  std::vector<SoftmaxPart> whole(static_cast<std::size_t>(sequences * of.rows), SoftmaxPart{.max = 0, .sum = 0, .acc = std::vector<float>(static_cast<std::size_t>(s.dim))});
  const auto add = [&](std::int64_t tokens, int level, std::int64_t first, std::int64_t last) {  // a part of sequences [first, last)
    if (tokens == 0) return;
    const auto seed = of.seed + static_cast<std::uint64_t>(level * 100 + first);
    const Array k = draw_rows(tokens, s.dim, s.dtype, seed), v = draw_rows(tokens, s.dim, s.dtype, seed + 31);
    const PartResults results = part_results(queries.view().slice(0, first * of.rows, (last - first) * of.rows), k, v, scale);
    for (std::int64_t q = first; q < last; ++q) {
      parts[static_cast<std::size_t>(q * levels + level)] = {static_cast<std::int64_t>(state.size() / 2) + (q - first) * of.rows * results.spans, results.spans, results.spans};
      for (std::int64_t r = 0; r < of.rows; ++r) merge_into(whole[static_cast<std::size_t>(q * of.rows + r)], results.whole[static_cast<std::size_t>((q - first) * of.rows + r)]);
    }
    state.insert(state.end(), results.state.begin(), results.state.end());
    partial.insert(partial.end(), results.partial.begin(), results.partial.end());
  };
  for (int level = 0; level + 1 < levels; ++level) add(of.shared[static_cast<std::size_t>(level)], level, 0, sequences);
  for (std::int64_t q = 0; q < sequences; ++q) add(of.own[static_cast<std::size_t>(q)], levels - 1, q, q + 1);
  const kernels::PrefixMergeLaunch launch{.dim = s.dim, .levels = levels, .rows = of.rows, .entries = static_cast<std::int64_t>(state.size() / 2), .parts = parts};
  launch.check();
  Verdict v{.kernel = "prefix_merge", .format = s.dtype == Dtype::bf16 ? "bf16" : "fp16", .shape = cat("sequences=", sequences, " levels=", levels, " rows=", of.rows, " dim=", s.dim)};
  std::vector<std::uint16_t> want;
  for (const SoftmaxPart& part : whole) {
    std::vector<float> out(static_cast<std::size_t>(s.dim));
    finish(part, out);
    const auto bits = bits_of_rows(View<const float>(out.data(), {1, s.dim}), s.dtype);
    want.insert(want.end(), bits.begin(), bits.end());
  }
  v.planned = launch.traffic();
  v.floor_bytes = launch.floor_bytes();
  for (const Schedule& schedule : schedules) {
    DeviceMemory memory;
    PrefixMergeArgs<SimCtx> a;
    a.parts = memory.upload("parts", parts);
    a.partial = memory.upload("partial", partial);
    a.state = SimCtx::global_as<const Vec<float, 2>>(memory.upload("state", state));
    a.out = memory.allocate<std::uint16_t>("out", static_cast<std::int64_t>(want.size()));
    a.rows = of.rows;
    a.levels = levels;
    Executor executor;
    const LaunchReport r = i.run(executor, {.grid = {of.rows, sequences}, .threads = s.dim}, schedule, a);
    note_launch(v, r, schedule);
    if (!r.completed) return v.bit_exact = false, v;
    v.output_hash = hash_bytes({});
    compare_buffer<std::uint16_t>(v, memory, a.out, want, "out");
  }
  return v;
}

}  // namespace kvatlas::gpu

#include <array>
#include <iterator>
#include <numeric>
#include <utility>

#include "core/errors.hpp"
#include "core/kernels/page_score_traffic.hpp"
#include "gpu/kernels/shapes.hpp"
#include "gpu/verify/parts.hpp"
#include "reference/retrieval/quest/pages.hpp"

namespace kvatlas::gpu {

namespace {

template <PageScoreShape S>
constexpr PageScoreInstance instance() {
  return {S, [](Executor& e, const Launch& l, const Schedule& s, const PageScoreArgs<SimCtx>& a) { return simulate(e, l, s, [&a](SimCtx& c) { page_score<S>(c, a); }); }};
}
template <std::size_t... I>
constexpr std::array<PageScoreInstance, sizeof...(I)> all(std::index_sequence<I...>) {
  return {instance<kPageScoreShapes[I]>()...};
}
constexpr auto kInstances = all(std::make_index_sequence<std::size(kPageScoreShapes)>{});

}  // namespace

std::span<const PageScoreInstance> page_score_instances() { return kInstances; }

Verdict verify_page_score(const PageScoreInstance& i, const PageScoreCase& of, std::span<const Schedule> schedules) {
  const PageScoreShape& s = i.shape;
  Verdict v{.kernel = "page_score", .format = s.dtype == Dtype::bf16 ? "bf16" : "fp16", .shape = cat("heads=", of.heads, " pages=", of.pages, " q_per_kv=", s.q_per_kv, " dim=", s.dim)};
  std::vector<std::uint16_t> bounds, q;
  std::vector<float> want;
  for (std::int64_t h = 0; h < of.heads; ++h) {
    const auto seed = of.seed + static_cast<std::uint64_t>(h) * 31;
    const Array keys = draw_rows(of.pages * of.page, s.dim, s.dtype, seed);
    const Array queries = draw_rows(s.q_per_kv, s.dim, s.dtype, seed + 7);
    const auto query_bits = bits_of_rows(queries.view(), s.dtype);
    q.insert(q.end(), query_bits.begin(), query_bits.end());
    std::vector<quest::Bounds> pages;
    for (std::int64_t p = 0; p < of.pages; ++p) {
      std::vector<std::int64_t> rows(static_cast<std::size_t>(of.page));
      std::iota(rows.begin(), rows.end(), p * of.page);
      pages.push_back(quest::bounds_of(keys.view(), rows));
      for (const std::vector<float>* side : {&pages.back().max, &pages.back().min}) {
        const auto bits = bits_of_rows(View<const float>(side->data(), {1, s.dim}), s.dtype);
        bounds.insert(bounds.end(), bits.begin(), bits.end());
      }
    }
    for (int g = 0; g < s.q_per_kv; ++g)
      for (const quest::Bounds& page : pages) want.push_back(quest::page_score(queries.view().row(g), page.max, page.min));
  }
  v.planned = kernels::PageScoreLaunch{.dim = s.dim, .q_per_kv = s.q_per_kv, .heads = of.heads, .pages = of.pages}.traffic();
  v.floor_bytes = static_cast<std::int64_t>(bounds.size() + q.size()) * 2 + static_cast<std::int64_t>(want.size()) * 4;
  for (const Schedule& schedule : schedules) {
    DeviceMemory memory;
    PageScoreArgs<SimCtx> a;
    a.bounds = memory.upload("bounds", bounds);
    a.q = memory.upload("q", q);
    a.scores = memory.allocate<float>("scores", static_cast<std::int64_t>(want.size()));
    a.pages = of.pages;
    Executor executor;
    const LaunchReport r = i.run(executor, {.grid = {ceil_div(of.pages, kPagesOfBlock), of.heads}, .threads = kPageScoreThreads}, schedule, a);
    note_launch(v, r, schedule);
    if (!r.completed) return v.bit_exact = false, v;
    try {
      const auto got = memory.download(a.scores, static_cast<std::int64_t>(want.size()));
      v.output_hash = hash_bytes(std::as_bytes(std::span(got)));
      for (std::size_t k = 0; k < want.size() && v.bit_exact; ++k)
        if (num::bits_of(got[k]) != num::bits_of(want[k])) {
          v.bit_exact = false;
          if (v.why.empty()) v.why = cat("score ", k, " is ", got[k], ", the reference has ", want[k]);
        }
    } catch (const InvalidArgument& unwritten) {
      v.bit_exact = false;
      if (v.why.empty()) v.why = unwritten.what();
    }
  }
  return v;
}

}  // namespace kvatlas::gpu

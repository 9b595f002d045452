#include <array>
#include <cmath>
#include <iterator>
#include <utility>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/kernels/row_traffic.hpp"
#include "core/rope.hpp"
#include "gpu/kernels/shapes.hpp"
#include "gpu/verify/parts.hpp"
#include "reference/primitives/rotation.hpp"

namespace kvatlas::gpu {

namespace {

template <RowShape S>
constexpr RowInstance instance() {
  return {S,
          [](Executor& e, const Launch& l, const Schedule& s, const RowArgs<SimCtx>& a) { return simulate(e, l, s, [&a](SimCtx& c) { hadamard_rows<S>(c, a); }); },
          [](Executor& e, const Launch& l, const Schedule& s, const RowArgs<SimCtx>& a) { return simulate(e, l, s, [&a](SimCtx& c) { rope_rows<S>(c, a); }); }};
}
template <std::size_t... I>
constexpr std::array<RowInstance, sizeof...(I)> all(std::index_sequence<I...>) {
  return {instance<kRowShapes[I]>()...};
}
constexpr auto kInstances = all(std::make_index_sequence<std::size(kRowShapes)>{});

Verdict start(const char* kernel, const RowInstance& i, const RowCase& of) {
  return {.kernel = kernel, .format = i.shape.dtype == Dtype::bf16 ? "bf16" : "fp16",
          .shape = cat("heads=", of.heads, " tokens=", of.tokens, " dim=", i.shape.dim, i.shape.block != i.shape.dim ? cat(" block=", i.shape.block) : std::string(), of.inverse ? " inverse" : "")};
}

void compare(Verdict& v, const DeviceMemory& memory, const RowArgs<SimCtx>& a, const std::vector<std::uint16_t>& want) {
  const auto got = memory.download(a.rows, static_cast<std::int64_t>(want.size()));
  v.output_hash = hash_bytes(std::as_bytes(std::span(got)));
  const auto at = std::ranges::mismatch(got, want).in1 - got.begin();
  if (got == want) return;
  v.bit_exact = false;
  if (v.why.empty()) v.why = cat("output ", at, " has bits ", got[static_cast<std::size_t>(at)], ", the reference has ", want[static_cast<std::size_t>(at)]);
}

}  // namespace

std::span<const RowInstance> row_instances() { return kInstances; }

Verdict verify_hadamard(const RowInstance& i, const RowCase& of, std::span<const Schedule> schedules) {
  Verdict v = start("hadamard", i, of);
  Array rows = draw_rows(of.heads * of.tokens, i.shape.dim, i.shape.dtype, of.seed);
  const auto bits = bits_of_rows(rows.view(), i.shape.dtype);
  for (std::int64_t r = 0; r < of.heads * of.tokens; ++r) hadamard(rows.view().row(r), i.shape.block);
  const auto want = bits_of_rows(rows.view(), i.shape.dtype);
  v.planned = kernels::RowLaunch{.dim = i.shape.dim, .heads = of.heads, .tokens = of.tokens}.hadamard();
  v.floor_bytes = static_cast<std::int64_t>(bits.size()) * 4;
  for (const Schedule& schedule : schedules) {
    DeviceMemory memory;
    RowArgs<SimCtx> a;
    a.rows = memory.upload_mutable<std::uint16_t>("rows", bits);
    a.heads = of.heads;
    a.tokens = of.tokens;
    a.factor = 1.0F / std::sqrt(static_cast<float>(i.shape.block));
    Executor executor;
    const LaunchReport r = i.hadamard(executor, {.grid = {ceil_div(of.heads * of.tokens, kRowThreads / 32)}, .threads = kRowThreads}, schedule, a);
    note_launch(v, r, schedule);
    compare(v, memory, a, want);
  }
  return v;
}

Verdict verify_rope(const RowInstance& i, const RowCase& of, std::span<const Schedule> schedules) {
  Verdict v = start("rope_apply", i, of);
  const int dim = i.shape.dim;
  const RopeTable table(RopeSpec{.rotary_dim = dim});
  Array rows = draw_rows(of.heads * of.tokens, dim, i.shape.dtype, of.seed);
  const auto bits = bits_of_rows(rows.view(), i.shape.dtype);
  std::vector<std::int32_t> positions;
  for (std::int64_t t = 0; t < of.tokens; ++t) positions.push_back(static_cast<std::int32_t>((t * 5) % (2 * of.tokens)));  // as a compacted cache has them
  std::vector<float> cos, sin;
  for (std::int64_t p = 0; p < 2 * of.tokens; ++p) {
    const Rotation r = of.inverse ? table.inverse_rotation(p) : table.rotation(p);
    cos.insert(cos.end(), r.cos.begin(), r.cos.end());
    sin.insert(sin.end(), r.sin.begin(), r.sin.end());
  }
  for (std::int64_t r = 0; r < of.heads * of.tokens; ++r) {
    const std::int32_t position = positions[static_cast<std::size_t>(r % of.tokens)];
    if (of.inverse) table.apply_inverse(rows.view().row(r), position);
    else table.apply(rows.view().row(r), position);
  }
  const auto want = bits_of_rows(rows.view(), i.shape.dtype);
  v.planned = kernels::RowLaunch{.dim = dim, .heads = of.heads, .tokens = of.tokens, .positions = positions}.rope();
  v.floor_bytes = static_cast<std::int64_t>(bits.size()) * 4 + of.tokens * dim * 4;
  for (const Schedule& schedule : schedules) {
    DeviceMemory memory;
    RowArgs<SimCtx> a;
    a.rows = memory.upload_mutable<std::uint16_t>("rows", bits);
    a.heads = of.heads;
    a.tokens = of.tokens;
    a.positions = memory.upload("positions", positions);
    a.cos = memory.upload("cos", cos);
    a.sin = memory.upload("sin", sin);
    Executor executor;
    const LaunchReport r = i.rope(executor, {.grid = {ceil_div(of.heads * of.tokens, kRowThreads / 32)}, .threads = kRowThreads}, schedule, a);
    note_launch(v, r, schedule);
    compare(v, memory, a, want);
  }
  return v;
}

}  // namespace kvatlas::gpu

// Cases of the kernels that score, choose and compact: what a cache does when it drops tokens.
#pragma once

#include "gpu/kernels/row_gather.hpp"
#include "gpu/simt/sim_context.hpp"
#include "gpu/verify/case.hpp"

namespace kvatlas::gpu {

struct GatherInstance {
  GatherShape shape;
  LaunchReport (*run)(Executor&, const Launch&, const Schedule&, const GatherArgs<SimCtx>&);
};
std::span<const GatherInstance> gather_instances();

struct GatherCase {
  std::int64_t context = 100;
  std::vector<std::int32_t> starts{};  // [heads + 1]
  std::vector<std::int32_t> kept{};    // [starts.back()], ascending for each head
  std::uint64_t seed = 1;
};
/// `heads` heads that keep about `rows` of `context` tokens each: head h keeps h fewer, always the first and the last.
GatherCase draw_gather(std::int64_t heads, std::int64_t context, std::int64_t rows, std::uint64_t seed);
/// throws InvalidArgument for lists that are not ascending or leave the context
Verdict verify_gather(const GatherInstance& instance, const GatherCase& of, std::span<const Schedule> schedules);

}  // namespace kvatlas::gpu

// Cases of the kernels that keep a cache's statistics, bounds and merged rows up to date.
#pragma once

#include "gpu/kernels/accumulated_scores.hpp"
#include "gpu/kernels/page_bounds.hpp"
#include "gpu/kernels/prefix_merge.hpp"
#include "gpu/kernels/weighted_merge.hpp"
#include "gpu/simt/sim_context.hpp"
#include "gpu/verify/case.hpp"

namespace kvatlas::gpu {

struct AccumulateInstance {
  AccumulateShape shape;
  LaunchReport (*run)(Executor&, const Launch&, const Schedule&, const AccumulateArgs<SimCtx>&);
};
std::span<const AccumulateInstance> accumulate_instances();

struct AccumulateCase {
  std::int64_t heads = 2;
  std::int64_t tokens = 300;
  std::int64_t queries = 1;  // newest of the tokens
  std::uint64_t seed = 1;
};
/// throws InvalidArgument for sizes that kernels::MassLaunch refuses
Verdict verify_accumulate(const AccumulateInstance& instance, const AccumulateCase& of, std::span<const Schedule> schedules);

struct PageBoundsInstance {
  PageBoundsShape shape;
  LaunchReport (*run)(Executor&, const Launch&, const Schedule&, const PageBoundsArgs<SimCtx>&);
};
std::span<const PageBoundsInstance> page_bounds_instances();

struct PageBoundsCase {
  std::int64_t heads = 2;
  std::int64_t context = 100;
  std::int64_t page = 16;   // tokens
  std::int64_t first = 0;   // first page to bound
  bool paged = true;        // pages of a pool in another order; else one row of keys a head
  std::uint64_t seed = 1;
};
/// throws InvalidArgument for sizes that kernels::PageBoundsLaunch refuses
Verdict verify_page_bounds(const PageBoundsInstance& instance, const PageBoundsCase& of, std::span<const Schedule> schedules);

struct PrefixMergeInstance {
  PrefixMergeShape shape;
  LaunchReport (*run)(Executor&, const Launch&, const Schedule&, const PrefixMergeArgs<SimCtx>&);
};
std::span<const PrefixMergeInstance> prefix_merge_instances();

/// Sequences under one shared prefix: each row of `tokens` lists its parts, root first. Parts of all rows but the last are shared by
/// every sequence; 0 tokens is an empty part.
struct PrefixMergeCase {
  std::vector<std::int64_t> shared{300};      // tokens of each shared part
  std::vector<std::int64_t> own{1, 70, 260};  // tokens of each sequence's own part
  std::int64_t rows = 4;                      // query rows of a sequence
  std::uint64_t seed = 1;
};
/// throws InvalidArgument for a case without sequences or rows
Verdict verify_prefix_merge(const PrefixMergeInstance& instance, const PrefixMergeCase& of, std::span<const Schedule> schedules);

struct WeightedMergeInstance {
  WeightedMergeShape shape;
  LaunchReport (*run)(Executor&, const Launch&, const Schedule&, const WeightedMergeArgs<SimCtx>&);
};
std::span<const WeightedMergeInstance> weighted_merge_instances();

struct WeightedMergeCase {
  std::int64_t heads = 2;
  std::int64_t tokens = 40;
  bool mass_moves = false;
  std::vector<std::pair<std::int32_t, std::int32_t>> pairs{{3, 4}, {9, 10}, {5, 6}, {14, 25}, {20, 19}};  // of every head: who leaves, who receives
  std::uint64_t seed = 1;
};
/// throws InvalidArgument for pairs that kernels::WeightedMergeLaunch refuses
Verdict verify_weighted_merge(const WeightedMergeInstance& instance, const WeightedMergeCase& of, std::span<const Schedule> schedules);

/// Compares what a launch left in a buffer with the reference, bit for bit, and takes the first difference down.
template <class T>
void compare_buffer(Verdict& v, const DeviceMemory& memory, GlobalPtr<T> at, std::span<const T> want, const char* what);

}  // namespace kvatlas::gpu

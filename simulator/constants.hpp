// Every constant of the predictor in one table, each with its origin. Figures of one GPU live in that GPU's record.
#pragma once

#include <cstdint>
#include <span>

#include "core/code_format.hpp"

namespace kvatlas::sim {

enum class Origin : std::uint8_t { published, measured, assumed };
const char* name_of(Origin origin);

/// What a constant belongs to: any GPU without a figure of its own, one kernel profile, matrix layers, links, the host,
/// the width of an interval, power.
enum class ConstantGroup : std::uint8_t { gpu_default, attention, prefill, other_kernel, matrix, link, host, interval, power };
const char* name_of(ConstantGroup group);

enum class C : std::uint8_t {
  dram_latency_s, tensor_share, launch_graph_s, launch_stream_s, item_bytes_in_flight, attention_vector_share, kernel_tensor_share,
  kernel_vector_share, kernel_latencies, top_k_floor_s, serial_vector_share, elementwise_kernels, elementwise_passes, l2_speed,
  timed_copies, nvlink_share,
  pcie_share, copy_submit_s, host_link_share, partial_prefix_credit, draft_acceptance,
  draft_work, head_variation, ragged_skew, idle_power_share
};
inline constexpr int kConstantCount = static_cast<int>(C::idle_power_share) + 1;

struct Constant {
  C id;
  const char* name;
  double value;
  const char* unit;
  ConstantGroup group;
  Origin origin;
  const char* source;
};

std::span<const Constant> all_constants();
double constant(C id);

/// Stored values that one SM turns into multiplier inputs in one clock, by format: a well written kernel, and the class
/// of kernel that research code releases (CUDA cores, paid once for each query head).
struct ValueRate {
  const char* compute_capability;  // "" = every other
  CodeKind kind;
  int bits;                        // 0 = any width
  double ideal;                    // values per clock and SM
  double released;                 // (value, query head) pairs per clock and SM; 0 = the same kernel serves both
  bool calibrated;                 // measurements of this format exist
  Origin origin;
  const char* source;
};
std::span<const ValueRate> all_value_rates();
const ValueRate& value_rate(const char* compute_capability, const CodeFormat& format);

}  // namespace kvatlas::sim

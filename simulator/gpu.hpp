// GPU descriptions as data: every figure with its source, what-if changes on any figure.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/units.hpp"

namespace kvatlas::sim {

/// A number with its origin. Unknown figures are absent, never 0.
struct Figure {
  std::optional<double> value{};// base units: bytes, bytes/s, flop/s, seconds, counts
  std::string source{};         // "NVIDIA H100 datasheet, SXM5"; "what-if" after a change
  bool known() const { return value.has_value(); }
  double or_else(double fallback) const { return value.value_or(fallback); }
};

struct Gpu {
  std::string slug;                  // "h100-sxm"
  std::string name;                  // "H100-SXM-80GB"
  std::vector<std::string> aliases;  // further names users and measurement files use
  std::string architecture;          // "Hopper"
  std::string compute_capability;    // "9.0"
  Figure sm_count, clock_hz;
  Figure memory_bytes;               // board capacity in bytes (data: GiB)
  Figure hbm_bandwidth;              // bytes/s, datasheet
  Figure l2_bytes, l2_bandwidth;
  Figure fp32_flops, fp16_flops, bf16_flops, fp8_flops, int8_ops, fp4_flops, int4_ops;  // dense
  Figure shared_memory_per_sm, registers_per_sm, max_warps_per_sm;
  Figure pcie_bandwidth, nvlink_bandwidth;  // one direction
  Figure tdp_watts;
  Figure stream_fraction, gemv_fraction, attention_fraction;  // achieved share of hbm_bandwidth
  Figure gemm_bf16_flops;                                      // achieved
  Figure launch_stream_s, launch_graph_s, attention_floor_s;
  Figure usd_per_hour;               // assumed price, labelled so
};

/// What a figure measures; decides which units a change may use.
enum class FigureKind : std::uint8_t { count, bytes, bandwidth, flops, seconds, hertz, watts, fraction, usd_per_hour };

/// One figure as every door names it: "hbm_bandwidth", or a shorter name ("bandwidth").
struct FigureField {
  std::string_view key;
  std::string_view short_key;  // a second accepted name; empty = none
  FigureKind kind;
  Figure Gpu::* member;
};
std::span<const FigureField> figure_fields();

/// Every shipped GPU, ordered by slug.
std::span<const Gpu> all_gpus();

/// By slug or alias, case-insensitive; throws InvalidArgument with a suggestion.
const Gpu& find_gpu(std::string_view name);

/// "h100-sxm" or "h100-sxm:hbm_bandwidth=6.7TB/s,l2=100MiB": a copy with changes. Throws InvalidArgument naming the
/// figure, the text and what is allowed.
Gpu parse_gpu(std::string_view text);

/// The stable text of a GPU with its changes; equal texts mean equal figures.
std::string canonical(const Gpu& gpu);

}  // namespace kvatlas::sim

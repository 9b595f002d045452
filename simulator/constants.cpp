#include "simulator/constants.hpp"

#include <array>
#include <string_view>

#include "core/errors.hpp"

namespace kvatlas::sim {

namespace {

using enum Origin;
using enum ConstantGroup;

// "cold rows": published decode-attention timings whose cache is more than twice the L2 and context at least 1,024.
constexpr const char* kRoughFit = "rough fit to published decode-attention timings, cold rows";
constexpr const char* kComm = "published all-reduce timings (aiconfigurator tables)";

constexpr std::array<Constant, kConstantCount> kConstants{{
    {C::dram_latency_s, "dram_latency", 0.7e-6, "s", gpu_default, measured, "pointer chase 0.35 to 0.39 us (RRZE gpu-benches), about twice that under load"},
    {C::tensor_share, "tensor_share", 0.75, "of peak", gpu_default, assumed, "middle of the measured GPUs, for one without a figure"},
    {C::launch_graph_s, "launch_graph", 1.3e-6, "s", gpu_default, measured, "RRZE gpu-benches, dependent tiny kernels in a graph"},
    {C::launch_stream_s, "launch_stream", 2.5e-6, "s", gpu_default, measured, "RRZE gpu-benches, dependent tiny kernels on a stream"},

    {C::item_bytes_in_flight, "item_bytes_in_flight", 32768, "bytes", attention, measured, kRoughFit},
    {C::attention_vector_share, "attention_vector_share", 0.088, "of peak", attention, measured, kRoughFit},

    {C::kernel_tensor_share, "kernel_tensor_share", 0.5, "of peak", other_kernel, assumed, "no measurements of these kernels"},
    {C::kernel_vector_share, "kernel_vector_share", 0.35, "of peak", other_kernel, assumed, "no measurements of these kernels"},
    {C::kernel_latencies, "kernel_latencies", 2, "latencies", other_kernel, assumed, "dependent reads of a small kernel"},
    {C::top_k_floor_s, "top_k_floor", 5e-6, "s", other_kernel, published, "Quest: 5 to 10 us below 128K tokens"},
    {C::serial_vector_share, "serial_vector_share", 0.05, "of peak", other_kernel, assumed, "factorizations and entropy coders are chains of dependent steps"},

    {C::elementwise_kernels, "elementwise_kernels", 4, "per layer", matrix, assumed, "two norms, rotary embedding, activation, with fused residuals"},
    {C::elementwise_passes, "elementwise_passes", 10, "hidden rows per token", matrix, assumed, "reads and writes of those kernels"},

    {C::l2_speed, "l2_speed", 3, "times memory", matrix, measured, "rough fit: published products whose weights fit L2, timed in turn"},
    {C::timed_copies, "timed_copies", 5, "copies", matrix, measured, "copies of a weight behind published product timings, as boards with a large L2 show"},

    {C::nvlink_share, "nvlink_share", 0.8, "of link", link, measured, kComm},
    {C::pcie_share, "pcie_share", 0.6, "of link", link, measured, kComm},
    {C::copy_submit_s, "copy_submit", 6e-6, "s", link, measured, "one host copy call, 5 to 7 us"},
    {C::host_link_share, "host_link_share", 0.8, "of link", link, measured, "pinned copies: 12.3 of 15.8 GB/s on a PCIe 3 card"},

    {C::partial_prefix_credit, "partial_prefix_credit", 0.5, "of hits", host, assumed, "hits of methods whose record says partly"},
    {C::draft_acceptance, "draft_acceptance", 0.8, "probability", host, assumed, "acceptance of one drafted token where nothing was measured"},
    {C::draft_work, "draft_work", 0.2, "of a step's matrices", host, assumed, "a draft of one layer, seven levels deep, beside 32 layers"},

    {C::head_variation, "head_variation", 0.72, "of the mean", interval, assumed, "rows that heads keep where each keeps its own number: a fifth of the mean to all (Ada-KV's floor), the rest as the square of the rank"},
    {C::ragged_skew, "ragged_skew", 1.37, "factor", interval, measured, "skewed batches on RTX 4090, 99th percentile"},

    {C::idle_power_share, "idle_power_share", 0.35, "of board power", power, assumed, "the rest grows with the busiest unit"},
}};

constexpr bool in_order() {
  for (std::size_t i = 0; i < kConstants.size(); ++i)
    if (static_cast<std::size_t>(kConstants[i].id) != i) return false;
  return true;
}
static_assert(in_order(), "constants are listed in the order of their enumerators");

constexpr const char* kAlu = "assumed: 64 integer lanes an SM over the lane-slots of one unpacked value (shift, mask, scale in pairs)";
constexpr double kPerQueryHead = 4;  // RTX 5090, 8.5-bit cache of llama.cpp: 0.7 values per clock and SM at 6 query heads

// Most specific first.
constexpr ValueRate kRates[] = {
    {"9.0", CodeKind::fp8, 8, 12, 0, true, measured, "published fp8 decode-attention timings, H100"},
    {"10.0", CodeKind::fp8, 8, 34, 0, true, measured, "published fp8 decode-attention timings, B200"},
    {"", CodeKind::fp8, 8, 12, 0, true, measured, "published fp8 decode-attention timings, L40S and RTX PRO 6000; not slower than this"},
    {"", CodeKind::plain, 0, 32, 0, true, assumed, "never the limit in published timings: above 13 values on B200"},
    {"", CodeKind::integer, 8, 32, kPerQueryHead, false, assumed, kAlu},
    {"", CodeKind::integer, 4, 40, kPerQueryHead, false, assumed, kAlu},
    {"", CodeKind::integer, 2, 48, kPerQueryHead, false, assumed, kAlu},
    {"", CodeKind::integer, 1, 48, kPerQueryHead, false, assumed, kAlu},
    {"", CodeKind::integer, 0, 32, kPerQueryHead, false, assumed, "assumed: widths that straddle bytes"},
    {"", CodeKind::fp4, 0, 40, kPerQueryHead, false, assumed, kAlu},
    {"", CodeKind::table, 0, 12, 1.5, false, assumed, "assumed: one shared-memory lookup a value; rotation-codebook caches measured 2.4 to 7x slower than plain"},
    {"", CodeKind::fp8, 0, 12, 0, true, measured, "as e4m3"},
};

}  // namespace

const char* name_of(Origin origin) {
  return origin == published ? "published" : origin == measured ? "measured" : "assumed";
}

const char* name_of(ConstantGroup group) {
  static constexpr const char* kNames[] = {"gpu_default", "attention", "prefill", "other_kernel", "matrix", "link", "host", "interval", "power"};
  return kNames[static_cast<std::size_t>(group)];
}

std::span<const Constant> all_constants() { return kConstants; }
double constant(C id) { return kConstants[static_cast<std::size_t>(id)].value; }

std::span<const ValueRate> all_value_rates() { return kRates; }

const ValueRate& value_rate(const char* compute_capability, const CodeFormat& format) {
  for (const ValueRate& r : kRates)
    if (r.kind == format.kind && (r.bits == 0 || r.bits == format.bits) &&
        (std::string_view(r.compute_capability).empty() || std::string_view(r.compute_capability) == compute_capability))
      return r;
  KV_ASSERT(false, "every code kind has a rate of any width");
  return kRates[0];
}

}  // namespace kvatlas::sim

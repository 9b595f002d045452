#include "simulator/kernel_model.hpp"

#include <algorithm>
#include <cmath>

#include "simulator/constants.hpp"

namespace kvatlas::sim {

double SmoothMax::value() const { return std::sqrt(std::sqrt(sum_)); }

KernelModel::KernelModel(const Gpu& gpu, bool graphs, double eager_launch_s, bool warm_cache) {
  sms_ = *gpu.sm_count.value;
  clock_ = *gpu.clock_hz.value;
  bandwidth_ = *gpu.hbm_bandwidth.value * gpu.attention_fraction.or_else(constant(C::attention_share));
  host_link_ = *gpu.pcie_bandwidth.value * constant(C::host_link_share);
  if (warm_cache) {
    l2_limit_ = *gpu.l2_bytes.value * constant(C::l2_usable_share);
    l2_bandwidth_ = std::max(bandwidth_, gpu.l2_bandwidth.or_else(*gpu.hbm_bandwidth.value * constant(C::l2_over_hbm)));
  }
  const double graph = gpu.launch_graph_s.or_else(constant(C::launch_graph_s));
  launch_ = graphs ? graph : std::max(gpu.launch_stream_s.or_else(constant(C::launch_stream_s)), eager_launch_s);
  const double tensor = *gpu.bf16_flops.value, vector = *gpu.fp32_flops.value;
  const double small = launch_ + constant(C::kernel_latencies) * constant(C::dram_latency_s);
  shares_.fill({tensor * constant(C::kernel_tensor_share), vector * constant(C::kernel_vector_share), small, true});
  const auto at = [&](KernelId id) -> Shares& { return shares_[static_cast<std::size_t>(id)]; };
  const double attention_floor = gpu.attention_floor_s.or_else(constant(C::attention_floor_s)) - graph + launch_;
  for (const KernelId id : {KernelId::decode_attention, KernelId::shared_attention})
    at(id) = {tensor * constant(C::attention_tensor_share), vector * constant(C::attention_vector_share), attention_floor, false};
  at(KernelId::prefill_attention) = {tensor * constant(C::prefill_tensor_share), vector * constant(C::prefill_vector_share), attention_floor, false};
  at(KernelId::top_k).floor = launch_ + constant(C::top_k_floor_s);
  for (const KernelId id : {KernelId::factorize, KernelId::entropy_code}) at(id).vector = vector * constant(C::serial_vector_share);
  for (const KernelId id : {KernelId::factorize, KernelId::entropy_code, KernelId::top_k}) at(id).splittable = false;

  for (std::size_t kind = 0; kind < rates_.size(); ++kind)
    for (std::size_t bits = 0; bits < rates_[kind].size(); ++bits) {
      const ValueRate& r = value_rate(gpu.compute_capability.c_str(),
                                      CodeFormat{.kind = static_cast<CodeKind>(kind), .bits = static_cast<int>(bits)});
      rates_[kind][bits] = {r.ideal, r.released, r.calibrated};
    }
}

KernelTerms KernelModel::terms(const KernelCall& call) const {
  KernelTerms t;
  const Shares& share = shares_[static_cast<std::size_t>(call.kernel)];
  t.floor_s = share.floor;
  const double bytes = static_cast<double>(call.traffic.read_bytes) + static_cast<double>(call.traffic.write_bytes);
  double items = std::max(1.0, call.even_items);
  if (share.splittable) items = std::max(items, bytes / constant(C::item_bytes_in_flight));
  if (call.kernel == KernelId::transfer) {
    const double copies = static_cast<double>(std::max<std::int64_t>(1, call.items));
    t.link_s = std::max(copies * constant(C::copy_submit_s), bytes / host_link_);
    return t;
  }
  const double active = std::min(1.0, items / sms_);
  const double bandwidth = l2_limit_ > 0 && bytes < l2_limit_ ? l2_bandwidth_ : bandwidth_;
  t.byte_s = bytes / bandwidth;
  // Little's law for one item: it has so many bytes in flight for each latency.
  t.item_s = bytes / items * (constant(C::dram_latency_s) / constant(C::item_bytes_in_flight));
  const Operations& ops = call.operations;
  t.tensor_s = ops.tensor_flops / (share.tensor * active);
  t.vector_s = ops.vector_flops / (share.vector * active);
  const bool attention = call.kernel == KernelId::decode_attention || call.kernel == KernelId::shared_attention;
  if (attention) {
    t.start_s = items / sms_ * constant(C::item_start_s);
    t.tail_s = constant(C::attention_tail) * (bytes / items) * sms_ / bandwidth;
  }
  if (ops.values > 0) {
    const double values = static_cast<double>(ops.values);
    const double clocks = clock_ * sms_ * active;
    const Rates& r = rates_[static_cast<std::size_t>(ops.format.kind)][static_cast<std::size_t>(std::clamp(ops.format.bits, 0, 16))];
    t.value_s = values / (r.ideal * clocks);
    t.released_value_s = t.value_s;
    if (r.released > 0) {
      // CUDA-core kernels pay each value once for every query head that shares it: 2 flops a value and head.
      const double heads = attention ? std::max(1.0, ops.tensor_flops / (2.0 * values)) : 1.0;
      t.released_value_s = std::max(t.value_s, values * heads / (r.released * clocks));
    }
  }
  return t;
}

KernelTime KernelModel::time(const KernelCall& call) const {
  const KernelTerms t = terms(call);
  if (call.kernel == KernelId::transfer) return {t.floor_s + t.link_s, t.floor_s + t.link_s, Bound::link, false};
  SmoothMax body;
  for (const double s : {t.item_s, t.start_s, t.byte_s, t.tensor_s, t.vector_s}) body.add(s);
  SmoothMax released = body;
  body.add(t.value_s);
  released.add(t.released_value_s);
  KernelTime out;
  out.ideal_s = t.floor_s + body.value() + t.tail_s;
  out.released_s = t.released_value_s > t.value_s ? t.floor_s + released.value() + t.tail_s : out.ideal_s;
  const double largest = std::max({t.item_s, t.start_s, t.byte_s, t.tensor_s, t.vector_s, t.value_s});
  out.bound = t.floor_s > largest || t.item_s == largest || t.start_s == largest ? Bound::latency
              : t.byte_s == largest                                              ? Bound::memory
              : t.value_s == largest                                             ? Bound::unpack
              : t.tensor_s == largest                                            ? Bound::tensor
                                                                                 : Bound::vector;
  if (call.operations.values > 0) {
    const CodeFormat& f = call.operations.format;
    out.uncalibrated = !rates_[static_cast<std::size_t>(f.kind)][static_cast<std::size_t>(std::clamp(f.bits, 0, 16))].calibrated;
  }
  return out;
}

}  // namespace kvatlas::sim

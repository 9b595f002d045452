#include "simulator/matrix_model.hpp"

#include <algorithm>
#include <array>
#include <string_view>

#include "simulator/constants.hpp"
#include "simulator/kernel_model.hpp"

namespace kvatlas::sim {

using models::MatMul;
using models::Role;

namespace {

bool quantized_role(Role role) {
  return role == Role::attention || role == Role::ffn || role == Role::expert || role == Role::shared_expert || role == Role::state;
}

enum class Split : std::uint8_t { outputs, inputs, kv_heads, whole };

/// How tensor parallelism splits a matrix: column-parallel into heads or widths, row-parallel back to the hidden width.
Split split_of(const MatMul& m) {
  const std::string_view name = m.name;
  if (m.role == Role::router || name == "q_a" || name == "kv_a" || name.starts_with("index_") || name == "shared_gate_logit") return Split::whole;
  if (name == "o" || name == "down" || name.ends_with("_down")) return Split::inputs;
  if (m.role == Role::attention && (name == "k" || name == "v")) return Split::kv_heads;
  return Split::outputs;
}

/// Products that engines run as one launch.
std::string_view fused_name(std::string_view name) {
  if (name == "q" || name == "q_and_gate" || name == "k" || name == "v") return "qkv_proj";
  if (name == "q_a" || name == "kv_a") return "qkv_a_proj";
  if (name == "gate" || name == "up") return "gate_up_proj";
  if (name == "expert_gate" || name == "expert_up") return "expert_gate_up_proj";
  if (name == "shared_gate" || name == "shared_up") return "shared_gate_up_proj";
  if (name == "o") return "o_proj";
  if (name == "down") return "down_proj";
  return name;
}

Product product_of(WeightFormat format, double bits, const Gpu& gpu) {
  if (bits >= 16) return Product::bf16;
  // Weights published in 8 bits are e4m3; narrower published ones are unpacked to bf16.
  if (format == WeightFormat::fp8 || (format == WeightFormat::bf16 && bits >= 8))
    return gpu.fp8_flops.known() ? Product::fp8 : Product::weight_only;
  if (format == WeightFormat::int8) return gpu.int8_ops.known() ? Product::int8 : Product::weight_only;
  if (format == WeightFormat::fp4 || format == WeightFormat::batquant) return gpu.fp4_flops.known() ? Product::fp4 : Product::weight_only;
  return Product::weight_only;
}

/// base^exponent by squaring; a fraction of the exponent is dropped.
double power(double base, double exponent) {
  double result = 1;
  for (auto e = static_cast<std::int64_t>(exponent); e > 0; e >>= 1, base *= base)
    if ((e & 1) != 0) result *= base;
  return result;
}

}  // namespace

models::WeightBits weight_bits(const models::Model& model, WeightFormat format) {
  models::WeightBits bits = model.native_bits;
  for (int r = 0; r < models::kRoles; ++r) {
    const Role role = static_cast<Role>(r);
    if (format == WeightFormat::f32) {
      bits[role] = 32;
    } else if (quantized_role(role)) {
      bits[role] = std::min(bits[role], bits_per_weight(format));
    } else {
      bits[role] = std::min(bits[role], 16.0);
    }
  }
  return bits;
}

MatrixModel::MatrixModel(const models::Model& model, const Gpu& gpu, WeightFormat weights, int tp, int ep, int dp, double launch_s,
                         std::string_view engine, const Calibration& calibration)
    : machine_(machine_of(gpu)), constants_(calibration.constants_of(gpu)), launch_(launch_s) {
  extra_launch_ = std::max(0.0, launch_s - gpu.launch_graph_s.or_else(constant(C::launch_graph_s)));  // profiles were timed from graphs
  const double bf16 = *gpu.bf16_flops.value;
  for (const auto& [product, peak] : {std::pair{Product::fp8, gpu.fp8_flops}, {Product::int8, gpu.int8_ops}, {Product::fp4, gpu.fp4_flops}})
    speedup_[static_cast<std::size_t>(product)] = peak.or_else(bf16) / bf16;
  // One profile a number format, in the order of Product; weight-only products by their width, 4 bits behind the rest.
  for (const char* format : {"bf16", "fp8", "fp8", "nvfp4", "int8_wo", "int4_wo"})
    profiles_.push_back(
        calibration.profiles[static_cast<std::size_t>(calibration.deployed_profile(KernelFamily::matrix, engine, gpu.compute_capability, 0, 1, format))]);
  group_ranks_ = ep > 1 ? dp : 1;

  const models::WeightBits bits = weight_bits(model, weights);
  for (const models::LayerGroup& g : model.groups) {
    if (g.experts > 0) expert_layers_ += g.count();
    for (const MatMul& m : g.matrices) add(m, g.count(), model, bits, gpu, weights, tp, ep);
    for (const models::VectorWeights& v : g.vectors) weight_bytes_ += static_cast<double>(v.size) * g.count() * bits.vectors / 8;
  }
  for (const MatMul& m : model.ends) add(m, 1, model, bits, gpu, weights, tp, ep);
  for (const models::VectorWeights& v : model.end_vectors) weight_bytes_ += static_cast<double>(v.size) * bits.vectors / 8;
  for (const MatrixOp& op : ops_)
    if (!op.last_only) widest_ = std::max(widest_, op.n + op.k);
}

void MatrixModel::add(const MatMul& m, double launches, const models::Model& model, const models::WeightBits& bits, const Gpu& gpu,
                      WeightFormat weights, int tp, int ep) {
  int kv_heads = 1;
  for (const LayerClass& c : model.cache.classes)
    if (c.kind == RowKind::kv || c.kind == RowKind::pooled) kv_heads = std::max(kv_heads, c.kv_heads);
  const bool expert = m.role == Role::expert;
  const int ranks = expert && ep > 1 ? 1 : tp;
  double n = static_cast<double>(m.n), k = static_cast<double>(m.k);
  switch (split_of(m)) {
    case Split::outputs: n /= ranks; break;
    case Split::inputs: k /= ranks; break;
    case Split::kv_heads: n *= std::max(1.0, static_cast<double>(kv_heads) / ranks) / kv_heads; break;
    case Split::whole: break;
  }
  const double stored = expert && ep > 1 ? static_cast<double>(m.count) / ep : m.count;
  if (!m.shared) weight_bytes_ += (n * k + (m.bias ? n : 0)) * stored * bits[m.role] / 8 * launches;
  if (m.role == Role::embedding) return;  // one row a token: no product
  const bool head = m.role == Role::lm_head;
  if (head) vocabulary_ = n;
  const std::string_view name = head ? "lm_head" : fused_name(m.name);
  const double width = m.count > 1 && !expert ? n * m.active : n;
  const Product product = product_of(weights, bits[m.role], gpu);
  // The products of one layer group come in a row; a fused one is among the last few.
  for (auto op = ops_.rbegin(); op != ops_.rend() && op - ops_.rbegin() < 4; ++op)
    if (op->name == name && op->k == k && op->launches == launches && op->bits == bits[m.role] && name != m.name) {
      op->n += width;
      return;
    }
  MatrixOp op{.name = std::string(name), .n = width, .k = k, .launches = launches, .bits = bits[m.role], .product = product,
              .profile = static_cast<std::uint8_t>(product == Product::weight_only && bits[m.role] < 8 ? 5 : static_cast<int>(product)), .last_only = head};
  if (expert) {
    op.experts = stored;
    op.active = m.active;
    op.miss = 1.0 - static_cast<double>(m.active) / m.count;
    op.active /= ep > 1 ? ep : 1;
  }
  ops_.push_back(std::move(op));
}

MatrixTime MatrixModel::time(const MatrixOp& op, double tokens) const {
  MatrixWork w{.groups = 1, .m = tokens, .n = op.n, .k = op.k, .weight_bytes = op.bits / 8,
               .activation_bytes = op.product == Product::bf16 || op.product == Product::weight_only ? 2.0 : op.product == Product::fp4 ? 0.5 : 1.0,
               .speedup = speedup_[static_cast<std::size_t>(op.product)]};
  if (op.experts > 0) {
    tokens *= group_ranks_;
    w.groups = std::max(1e-9, op.experts * (1.0 - power(op.miss, tokens)));
    w.m = tokens * op.active / w.groups;  // rows that an expert meets, spread evenly
  }
  const MatrixTerms terms = matrix_terms(machine_, constants_, profiles_[op.profile], w);
  MatrixTime t;
  t.bytes = w.groups * (op.n * op.k * w.weight_bytes + w.m * (op.k * w.activation_bytes + op.n * 2.0)) + w.quantize_bytes();
  t.flops = 2.0 * w.groups * w.m * op.n * op.k;
  const double overhead = std::max(terms.launch + extra_launch_, launch_) + terms.waves;
  t.seconds = overhead + terms.quantize + terms.body();
  const double moved = terms.bytes + terms.quantize, largest = std::max({moved, terms.tensor, terms.tile});
  t.bound = overhead > largest ? Bound::latency : terms.tensor == largest || moved < 0.5 * largest ? Bound::tensor : Bound::memory;
  return t;
}

double MatrixModel::seconds(double tokens, double sequences) const {
  double sum = 0;
  for (const MatrixOp& op : ops_) sum += op.launches * time(op, op.last_only ? sequences : tokens).seconds;
  return sum;
}

}  // namespace kvatlas::sim

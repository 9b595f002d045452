// The matrix layers of a model on one rank: which products a step runs, by weight format, and how long each takes.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "models/model.hpp"
#include "simulator/closed_form.hpp"
#include "simulator/engine.hpp"
#include "simulator/evaluator.hpp"
#include "simulator/gpu.hpp"

namespace kvatlas::sim {

/// What the tensor units see: the operands of the product.
enum class Product : std::uint8_t { bf16, fp8, int8, fp4, weight_only };

/// One launch of a layer: equal products fused by the engine (q, k, v; gate, up), on one tensor-parallel rank.
struct MatrixOp {
  std::string name;
  double n = 0, k = 0;        // outputs and inputs on this rank
  double launches = 1;        // layers that run it
  double experts = 0;         // of this rank; 0 = dense
  double active = 0;          // experts that one token meets, on all ranks
  double miss = 0;            // share of experts that one token does not meet
  double bits = 16;           // stored bits of one weight
  Product product = Product::bf16;
  std::uint8_t profile = 0;   // of the model's profiles
  bool last_only = false;     // lm_head: only the last token of each sequence
};

struct MatrixTime {
  double seconds = 0;         // one launch
  double bytes = 0, flops = 0;
  Bound bound = Bound::memory;
};

class MatrixModel {
 public:
  MatrixModel(const models::Model& model, const Gpu& gpu, WeightFormat weights, int tp, int ep, int dp, double launch_s,
              std::string_view engine = "vllm", const Calibration& calibration = shipped_calibration());

  std::span<const MatrixOp> ops() const { return ops_; }
  /// `tokens` rows enter the layer on this rank (for experts: tokens of the whole expert group, spread evenly).
  MatrixTime time(const MatrixOp& op, double tokens) const;
  /// All launches of one pass over the model; `sequences` rows reach the lm_head.
  double seconds(double tokens, double sequences) const;
  /// Bytes of one rank's weights, all pipeline stages together.
  double weight_bytes() const { return weight_bytes_; }
  /// Widest pair of activations of one token in one layer, in values.
  double widest() const { return widest_; }
  double vocabulary_of_rank() const { return vocabulary_; }
  double expert_layers() const { return expert_layers_; }

 private:
  void add(const models::MatMul& m, double launches, const models::Model& model, const models::WeightBits& bits, const Gpu& gpu,
           WeightFormat weights, int tp, int ep);

  std::vector<MatrixOp> ops_;
  Machine machine_;
  GpuConstants constants_;
  std::vector<Profile> profiles_;
  std::array<double, 5> speedup_{1, 1, 1, 1, 1};  // peak of each product over bf16's
  double launch_, extra_launch_;
  double weight_bytes_ = 0, widest_ = 0, vocabulary_ = 0, expert_layers_ = 0, group_ranks_ = 1;
};

/// Stored bits of each role under a weight format: lower where the published weights are already narrower; embedding,
/// lm_head, router and norms stay as published.
models::WeightBits weight_bits(const models::Model& model, WeightFormat format);

}  // namespace kvatlas::sim

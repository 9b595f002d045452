// Time of one kernel call on one GPU in closed form: floor, items, bytes, values, tensor and vector work, tail.
#pragma once

#include <array>
#include <string>

#include "core/plan.hpp"
#include "simulator/evaluator.hpp"
#include "simulator/gpu.hpp"

namespace kvatlas::sim {

/// One launch. `released_s` is the time of the class of kernel that research code releases; equal for calibrated formats.
struct KernelTime {
  double ideal_s = 0;
  double released_s = 0;
  Bound bound = Bound::memory;
  bool uncalibrated = false;
};

/// The terms of one launch before they are joined, for explanations.
struct KernelTerms {
  double floor_s = 0, item_s = 0, start_s = 0, byte_s = 0, value_s = 0, released_value_s = 0, tensor_s = 0, vector_s = 0, link_s = 0, tail_s = 0;
};

/// (a^4 + b^4 + ...)^(1/4): a maximum without a kink, from + * / and square roots alone.
class SmoothMax {
 public:
  void add(double seconds) {
    const double square = seconds * seconds;
    sum_ += square * square;
  }
  double value() const;

 private:
  double sum_ = 0;
};

/// A GPU reduced to the rates that kernels ask for; made once for a deployment.
class KernelModel {
 public:
  /// `graphs`: launches are replayed from a graph; else each costs a stream launch or the engine's own, whichever is longer.
  KernelModel(const Gpu& gpu, bool graphs, double eager_launch_s, bool warm_cache);

  KernelTerms terms(const KernelCall& call) const;
  KernelTime time(const KernelCall& call) const;

  double launch_s() const { return launch_; }
  double bandwidth() const { return bandwidth_; }  // what streaming kernels reach, bytes/s
  double sms() const { return sms_; }

 private:
  struct Shares {
    double tensor, vector;  // achieved rates, flop/s
    double floor;
    bool splittable;        // work of one item may spread over SMs: rows are independent
  };
  double sms_, clock_, bandwidth_, l2_bandwidth_ = 0, l2_limit_ = 0, launch_, host_link_;
  std::array<Shares, kKernelCount> shares_;
  struct Rates {
    double ideal, released;
    bool calibrated;
  };
  std::array<std::array<Rates, 17>, 5> rates_;  // by code kind and bits
};

/// The time of a call as a sentence with its numbers put in.
std::string kernel_formula(const KernelModel& model, const KernelCall& call);

}  // namespace kvatlas::sim

// Time of one kernel call on one GPU in closed form: launch, items, bytes, values, tensor and vector work.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "core/plan.hpp"
#include "simulator/closed_form.hpp"
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
  double floor_s = 0, item_s = 0, start_s = 0, byte_s = 0, value_s = 0, released_value_s = 0, tensor_s = 0, vector_s = 0, link_s = 0, split_s = 0, held_s = 0;
  double moved = 0;    // bytes that byte_s is the time of
  bool added = false;  // the terms are added (prompt attention); else joined by a smooth maximum
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

/// A GPU and an engine's kernels reduced to the rates that calls ask for; made once for a deployment.
class KernelModel {
 public:
  /// `graphs`: launches are replayed from a graph; else each costs a stream launch or the engine's own, whichever is longer.
  /// `engine` picks the attention kernels: what it runs on this GPU, or the nearest that was measured.
  KernelModel(const Gpu& gpu, bool graphs, double eager_launch_s, bool warm_cache, std::string_view engine = "vllm",
              const Calibration& calibration = shipped_calibration());

  KernelTerms terms(const KernelCall& call) const;
  KernelTime time(const KernelCall& call) const;

  double launch_s() const { return launch_; }
  double bandwidth() const { return constants_.c[bandwidth_share] * machine_.bandwidth; }  // what streaming kernels reach, bytes/s
  double sms() const { return machine_.sms; }
  const Machine& machine() const { return machine_; }
  const GpuConstants& constants() const { return constants_; }
  /// The profile that serves a decode-attention call.
  const Profile& decode_profile(const KernelCall& call) const;
  const Profile& prefill_profile() const { return prefill_; }
  /// Stored values of the call's format that a well written kernel converts on one SM in a clock.
  double value_rate_of(const KernelCall& call) const;

 private:
  struct Shares {
    double tensor, vector;  // achieved rates, flop/s
    double floor;
    bool splittable;        // work of one item may spread over SMs: rows are independent
  };
  struct Rates {
    double ideal, released;
    bool calibrated;
  };
  static constexpr std::size_t kGroups = 65;  // query heads a kv head that are told apart

  KernelTerms decode_call(const KernelCall& call) const;
  KernelTerms prefill_call(const KernelCall& call) const;

  Machine machine_;
  GpuConstants constants_;
  double launch_, extra_launch_, host_link_, floor_ = 0;  // floor_: a what-if floor of attention; 0 = the profile's
  bool warm_;
  std::array<Shares, kKernelCount> shares_;
  std::array<std::array<Rates, 17>, 5> rates_;            // by code kind and bits
  std::vector<Profile> profiles_;
  std::array<std::array<std::uint8_t, kGroups>, 2> decode_;  // profile of 16-bit and 8-bit caches by group
  std::array<std::uint8_t, 2> latent_{};                     // profile of 16-bit and 8-bit latent rows
  Profile prefill_;
};

/// The time of a call as a sentence with its numbers put in.
std::string kernel_formula(const KernelModel& model, const KernelCall& call);

}  // namespace kvatlas::sim

// The grid of cases behind `kvatlas verify`: every kernel instance of this build against the reference.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "gpu/verify/case.hpp"

namespace kvatlas::gpu {

struct VerifyOptions {
  std::string kernel{};  // empty: all
  std::string format{};  // empty: all; a part of a format's name is enough
  bool long_run = false;  // all schedules with eight seeds, long contexts, every case
};

/// Names of kernels with cases.
std::vector<std::string> verified_kernels();
/// throws InvalidArgument for an unknown kernel, or when no case has the format
std::vector<Verdict> verify(const VerifyOptions& options, const std::function<void(const Verdict&)>& progress = {});

}  // namespace kvatlas::gpu

// The door of the program. This file alone is compiled for the architecture's baseline (see CMakeLists.txt), so that an
// older machine gets a sentence instead of an illegal instruction.
#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "cli/commands/command.hpp"

namespace {

bool machine_is_new_enough() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && __builtin_cpu_supports("bmi2") != 0;
#else
  return true;
#endif
}

}  // namespace

int main(int argc, char** argv) {
  if (!machine_is_new_enough()) {
    std::fputs("kvatlas: this processor lacks AVX2, FMA or BMI2 (x86-64-v3: Intel Haswell, AMD Zen or newer), which kvatlas needs\n", stderr);
    return 1;
  }
  const kvatlas::cli::Arguments args(argv + (argc > 0 ? 1 : 0), argv + argc);
  const kvatlas::cli::Streams io{.out = std::cout, .err = std::cerr, .progress = ::isatty(STDERR_FILENO) == 1};
  const int code = kvatlas::cli::run(args, io);
  std::cout.flush();
  if (!std::cout) {
    std::fputs("kvatlas: standard output cannot be written\n", stderr);
    return 1;
  }
  return code;
}

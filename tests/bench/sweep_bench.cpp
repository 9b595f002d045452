// Points per second of a sweep, with and without the store:
//   kvatlas_sweep_bench [SPEC [FOLDER [JOBS]]]
// Recipes whose figures depend on each layer's own budget are part of the mix; name a SPEC to time them apart.
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "core/errors.hpp"
#include "sweeps/runner.hpp"
#include "sweeps/spec.hpp"

int main(int argc, char** argv) {
  using namespace kvatlas;
  try {
    const sweep::Spec spec = sweep::load_spec(argc > 1 ? argv[1] : "sweeps/examples/demo.json");
    const std::filesystem::path folder = argc > 2 ? argv[2] : std::filesystem::temp_directory_path();
    const sweep::SweepOptions options{.jobs = argc > 3 ? std::atoi(argv[3]) : 0, .shard = {}, .progress = {}};
    for (int round = 0; round < 3; ++round) {
      const sweep::SweepReport r = sweep::evaluate_sweep(spec, options).report;
      std::printf("evaluated  %9lld points  %7.3f s  %10.0f points/s\n", static_cast<long long>(r.points), r.seconds, r.points_per_s);
    }
    for (int round = 0; round < 3; ++round) {
      const std::filesystem::path store = folder / "kvatlas_sweep_bench.sqlite";
      std::filesystem::remove(store);
      const sweep::SweepReport r = sweep::run_sweep(spec, store, options);
      std::printf("stored     %9lld points  %7.3f s  %10.0f points/s  %5.1f bytes a point\n", static_cast<long long>(r.stored), r.seconds, r.points_per_s,
                  static_cast<double>(std::filesystem::file_size(store)) / static_cast<double>(r.stored));
      std::filesystem::remove(store);
    }
    return 0;
  } catch (const Error& e) {
    std::fprintf(stderr, "kvatlas_sweep_bench: %s\n", e.what());
    return 1;
  }
}

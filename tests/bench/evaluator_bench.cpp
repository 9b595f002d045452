// Evaluations per second of the predictor on one core, per method of the registry:
//   kvatlas_evaluator_bench [POINTS]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "core/errors.hpp"
#include "models/registry.hpp"
#include "reference/registry.hpp"
#include "simulator/evaluator.hpp"

namespace {

using namespace kvatlas;

template <class F>
double microseconds_each(int n, F&& f) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < n; ++i) f(i);
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / n;
}

}  // namespace

int main(int argc, char** argv) {
  const int points = argc > 1 ? std::max(1, std::atoi(argv[1])) : 200000;
  const models::Model& model = models::find_model("llama-3.1-8b");
  std::printf("llama-3.1-8b on h100-sxm, contexts 1K to 101K, batches 1 to 64, one core\n%-18s %12s %14s %12s %12s\n", "method", "step us", "steps/s",
              "prefill us", "workload us");
  double sink = 0;
  for (const Method* m : all_methods()) {
    try {
      const sim::Evaluator e({.model = &model, .gpu = sim::find_gpu("h100-sxm"), .recipe = Recipe::parse(m->slug)});
      const double step = microseconds_each(points, [&](int i) { sink += e.step(Tokens(1000 + i % 100000), 1 + i % 64).step_s; });
      const double prefill = microseconds_each(points / 20 + 1, [&](int i) { sink += e.prefill_s(Tokens(1000 + i % 100000), 1); });
      const double workload = microseconds_each(points / 100 + 1, [&](int i) {
        sink += e.workload({.prompt = Tokens(8192 + i % 1000), .output = Tokens(512), .slo = {.tpot_s = 0.05}}).requests_per_s;
      });
      std::printf("%-18s %12.3f %14.0f %12.3f %12.2f\n", m->slug, step, 1e6 / step, prefill, workload);
    } catch (const Error& error) {
      std::printf("%-18s skipped: %s\n", m->slug, error.what());
    }
  }
  return sink >= 0 ? 0 : 1;
}

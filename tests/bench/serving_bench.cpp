// Simulated requests per second of the serving simulator on one core:
//   kvatlas_serving_bench [REQUESTS]
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "models/registry.hpp"
#include "simulator/serving/serving.hpp"

int main(int argc, char** argv) {
  using namespace kvatlas;
  const long long requests = argc > 1 ? std::max(1LL, std::atoll(argv[1])) : 200000;
  struct Case {
    const char* name;
    const char* gpu;
    const char* recipe;
    sim::StreamRecipe stream;
  };
  const Case cases[] = {
      {"Poisson, half load", "h100-sxm", "full", {.prompt = Tokens(1024), .output = Tokens(256), .spread = 0.5, .rate = 10}},
      {"Poisson, overload", "rtx-4090", "full", {.prompt = Tokens(1024), .output = Tokens(256), .spread = 0.5, .rate = 20}},
      {"64 users", "h100-sxm", "kivi:bits=2", {.prompt = Tokens(2048), .output = Tokens(512), .spread = 0.5, .users = 64}},
      {"256 users, 32K prompts", "h100-sxm", "snapkv", {.prompt = Tokens(32768), .output = Tokens(512), .spread = 0.5, .users = 256}},
      {"conversations of 4 turns", "h100-sxm", "full", {.prompt = Tokens(512), .output = Tokens(128), .spread = 0.5, .prefix_hit = 0.5, .turns = 4, .rate = 20}},
  };
  std::printf("llama-3.1-8b, %lld requests each\n%-26s %-12s %12s %10s %12s\n", requests, "stream", "method", "requests/s", "spans", "preemptions");
  for (const Case& c : cases) {
    sim::StreamRecipe recipe = c.stream;
    recipe.requests = requests;
    const sim::ServingSetup setup{.deployment = {.model = &models::find_model("llama-3.1-8b"), .gpu = sim::find_gpu(c.gpu), .recipe = Recipe::parse(c.recipe)}};
    const auto start = std::chrono::steady_clock::now();
    const sim::ServingReport r = sim::serve(setup, sim::make_stream(recipe));
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%-26s %-12s %12.0f %10lld %12lld\n", c.name, c.recipe, static_cast<double>(r.completed) / seconds, static_cast<long long>(r.counts.spans), static_cast<long long>(r.preemptions));
  }
  return 0;
}

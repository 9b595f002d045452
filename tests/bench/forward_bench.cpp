// Tokens per second of a model's forward pass: a prompt in chunks of 512, then single steps; by the clock and by processor time of
// all threads, which a busy machine disturbs less. Weights as the first argument, then tokens of the prompt, decode steps and
// threads (1024, 32, all).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "core/parallel.hpp"
#include "models/runtime/transformer.hpp"

namespace {

struct Time {
  double clock = 0, processor = 0;
};

Time now() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return {std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(),
          static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec)};
}

/// The least of each since `start`.
void keep_best(Time& best, const Time& start) {
  const Time end = now();
  best = {std::min(best.clock, end.clock - start.clock), std::min(best.processor, end.processor - start.processor)};
}

}  // namespace

int main(int argc, char** argv) {
  using namespace kvatlas;
  using namespace kvatlas::models;
  if (argc < 2) {
    std::fprintf(stderr, "usage: kvatlas_forward_bench WEIGHTS [PROMPT [STEPS [THREADS]]]\n");
    return 2;
  }
  const std::int64_t prompt = argc > 2 ? std::atoll(argv[2]) : 1024, steps = argc > 3 ? std::atoll(argv[3]) : 32;
  if (argc > 4) set_threads(std::atoi(argv[4]));
  WeightFile file = WeightFile::open(argv[1]);
  Architecture architecture = architecture_of(file);
  const Transformer t(std::move(architecture), WeightSet(std::move(file)));
  std::vector<TokenId> tokens;
  for (std::int64_t i = 0; i < prompt; ++i) tokens.push_back(static_cast<TokenId>((i * 7919 + 13) % t.vocabulary()));
  Time best_prompt{1e30, 1e30}, best_step{1e30, 1e30};
  for (int run = 0; run < 3; ++run) {
    PlainAttention attention(t.model().cache);
    Time start = now();
    constexpr std::int64_t kChunk = 512;
    for (std::int64_t first = 0; first < prompt; first += kChunk) {
      const std::int64_t n = std::min(kChunk, prompt - first);
      const Segment segment{.attention = &attention, .tokens = n, .first_position = first};
      t.forward(std::span(tokens).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(n)), {&segment, 1});
    }
    keep_best(best_prompt, start);
    start = now();
    for (std::int64_t i = 0; i < steps; ++i) {
      const Segment segment{.attention = &attention, .tokens = 1, .first_position = prompt + i};
      const Array state = t.forward(std::span(tokens).subspan(static_cast<std::size_t>(i % prompt), 1), {&segment, 1});
      Array logits({1, t.vocabulary()});
      t.logits(state.view(), logits.view());
    }
    keep_best(best_step, start);
  }
  const auto rate = [](std::int64_t n, double seconds) { return static_cast<double>(n) / seconds; };
  std::printf("best of 3, %d threads\nprompt  %8.1f tokens/s %8.1f tokens/processor second\ndecode  %8.1f tokens/s %8.1f tokens/processor second\n", threads(),
              rate(prompt, best_prompt.clock), rate(prompt, best_prompt.processor), rate(steps, best_step.clock), rate(steps, best_step.processor));
}

#include "reference/eviction/dkv_cache/schedule.hpp"

#include <algorithm>

namespace kvatlas::methods::dkv {

std::int64_t decoded_before(std::int64_t masked, std::int64_t steps, std::int64_t step) {
  return step * (masked / steps) + std::min(step, masked % steps);
}

Work work_of(const Schedule& s) {
  const bool whole = s.variant == Variant::prefill || s.variant == Variant::pd;
  const std::int64_t block = std::max<std::int64_t>(1, whole ? s.generated : std::min(s.block, s.generated)), blocks = s.generated / block;
  const std::int64_t steps = whole ? s.steps * std::max<std::int64_t>(1, s.generated / s.block) : s.steps;
  Work work{.steps = blocks * steps};
  const auto add = [&](std::int64_t tokens) {
    work.full_steps += tokens >= s.text ? 1 : 0;
    work.partial_tokens += tokens >= s.text ? 0 : tokens;
  };
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t clean = s.text - s.generated + b * block;  // decoded before the block
    for (std::int64_t i = 0; i < steps; ++i) {
      const std::int64_t earlier = decoded_before(block, steps, std::max<std::int64_t>(0, i - 1));
      const bool refreshes = i % s.refresh == 0;
      if (s.variant == Variant::decode) {
        add(refreshes || i <= 1 ? s.text : s.text - clean - earlier);
      } else if (s.variant == Variant::greedy) {
        const std::int64_t next = decoded_before(block, steps, i + 1);
        add(refreshes ? s.text : next - earlier + std::min(s.window, s.text - clean - next));
      } else if (i == 0) {
        add(s.text);
      } else {
        add(s.variant == Variant::prefill || refreshes ? s.generated : s.generated - earlier);
      }
    }
  }
  return work;
}

}  // namespace kvatlas::methods::dkv

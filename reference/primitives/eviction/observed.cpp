#include "reference/primitives/eviction/observed.hpp"

#include "core/arith.hpp"
#include "core/kernels/select.hpp"

namespace kvatlas::eviction {

void observe_mass(Rule& rule) {
  rule.words.push_back({"mass", 8});
  rule.observe = [](const Seen& seen) {
    for (std::size_t t = 0; t < seen.weights.size(); ++t)
      seen.rows.words(0).add(seen.head, seen.first_slot + static_cast<std::int64_t>(t), num::to_mass(seen.weights[t]));
  };
}

Scorer mean_observed() {
  return {.score = [](const Scene& scene) {
            Scores scores(static_cast<std::size_t>(scene.rows.heads()));
            const int group = scene.c.q_heads / scene.rows.heads();
            for (int h = 0; h < scene.rows.heads(); ++h) {
              const std::vector<std::uint64_t> mass = scene.rows.words(0).all(h);
              for (std::size_t t = 0; t < mass.size(); ++t)
                scores[static_cast<std::size_t>(h)].push_back(num::from_mass(mass[t]) / static_cast<float>(mass.size() - t) / static_cast<float>(group));
            }
            return scores;
          },
          .charge = [](const Charge& to) {
            to.plan.add(kernels::MassUpdate{.sequences = to.history.sequences, .kv_heads = to.c.kv_heads, .q_per_kv = to.c.q_per_kv(),
                                            .tokens = to.rows, .state_bytes = 8}
                            .call(to.launches));
          }};
}

}  // namespace kvatlas::eviction

// Locret against the official loop: which tokens each forward pass of a prompt sees.
#include <algorithm>

#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("Locret's passes see the tokens that those of the official loop see", "[golden]") {
  int compared = 0;
  for (const GoldenCase& g : golden_cases("locret")) {
    CAPTURE(g.name());
    const auto tokens = whole(g, "tokens"), heads = whole(g, "kv_heads"), chunk = whole(g, "chunk_size"), local = whole(g, "local_len");
    const NamedTensor scores = g.floats("scores");
    const std::int64_t layers = static_cast<std::int64_t>(scores.values.size()) / (tokens * heads);
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      // The given score of a token and head is the first channel of its key; silu(x) - silu(-x) = x reads it off.
      Array q({heads, tokens, 2}), k({heads, tokens, 2});
      for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t h = 0; h < heads; ++h) k.view()(h, t, 0) = scores.values[static_cast<std::size_t>((layer * tokens + t) * heads + h)];
      const Traced run(q.view(), k.view());
      const std::int64_t width = 6 * heads, hidden = 2 * heads;
      NamedTensor fc1{.dims = {hidden, width}, .values = std::vector<float>(static_cast<std::size_t>(hidden * width))}, fc2{.dims = {heads, hidden}, .values = std::vector<float>(static_cast<std::size_t>(heads * hidden))};
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t sign = 0; sign < 2; ++sign) {
          fc1.values[static_cast<std::size_t>((2 * h + sign) * width + 2 * heads + 2 * h)] = sign == 0 ? 1.0F : -1.0F;
          fc2.values[static_cast<std::size_t>(h * hidden + 2 * h + sign)] = sign == 0 ? 1.0F : -1.0F;
        }
      const TensorMap trained{{"layer0.fc1", fc1}, {"layer0.fc2", fc2}};
      const MethodChoice m = parse_choice(cat("locret:budget=", whole(g, "budget_size"), ",chunk=", chunk, ",recent_window=", local, ",stabilizers=", whole(g, "stabilizers"), ",last_tokens=announced"));
      const auto cache = m.method->open(m.row, run.shape(), {.trained = &trained});
      cache->notify({.kind = EventKind::prompt_length, .last = tokens});
      int pass = 0;
      for (std::int64_t done = 0; done < tokens; ++pass) {
        const std::int64_t n = done < tokens - local ? std::min(chunk, tokens - local - done) : tokens - done;
        std::vector<std::int64_t> seen;
        for (int h = 0; h < static_cast<int>(heads); ++h) {
          const auto held = done == 0 ? std::vector<std::int64_t>{} : tokens_held(*cache, h);
          seen.insert(seen.end(), held.begin(), held.end());
          for (std::int64_t t = done; t < done + n; ++t) seen.push_back(t);
        }
        run.run(*cache, done, n);
        done += n;
        check_exact(g, cat("cache_forward", pass, "_layer", layer), seen);
        ++compared;
      }
    }
  }
  CHECK(compared >= 19);
}

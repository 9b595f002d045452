// Rows that are rotated already, as captured ones are, with a cache that is told of no rotation: either nothing changes, or the
// record says why they will not do.
#include <algorithm>
#include <bit>

#include "core/errors.hpp"
#include "core/rope.hpp"
#include "reference/compose/trained_inputs.hpp"
#include "reference/method.hpp"
#include "reference/primitives/step.hpp"
#include "tests/catch.hpp"
#include "tests/support/scenario.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// A situation whose keys rotate as a captured model's may: whole heads, in halves.
Scenario rotating(const Method& method, std::uint64_t attempt) {
  Scenario s = draw(method, attempt);
  for (LayerClass& c : s.shape.classes) c.rope = {.rotary_dim = c.k_dim};
  s.prompt = s.chunk = 40 + s.prompt;  // enough that tokens leave and groups fill
  s.decode = 6;
  return s;
}

/// Outputs of the situation's rows: before RoPE, or rotated by hand.
std::vector<std::uint32_t> outputs(const Scenario& s, const CacheShape& shape, const TensorMap& trained, bool by_hand) {
  const auto cache = s.method->open(s.row, shape, {.trained = trained.empty() ? nullptr : &trained});
  std::vector<std::uint32_t> bits;
  const auto run = [&](std::int64_t first, std::int64_t n) {
    for (const LayerClass& c : s.shape.classes)
      for (const int layer : c.layers) {
        Inputs in = inputs_for(s.shape, layer, first, n, s.seed);
        if (by_hand) {
          const RopeTable table(c.rope);
          for (Array* rows : {&in.q, &in.k}) {
            round_all(s.shape.dtype, rows->values());  // as a cache does before it rotates
            for (std::int64_t h = 0; h < rows->dims()[0]; ++h)
              for (std::int64_t t = 0; t < n; ++t) table.apply(rows->view().row(h, t), first + t);
          }
        }
        Array out({c.q_heads, n, c.v_dim});
        cache->forward(layer, in.step(), out.view());
        for (const float f : out.values()) bits.push_back(std::bit_cast<std::uint32_t>(f));
      }
  };
  scenarios::announce(*cache, s);
  run(0, s.prompt);
  cache->end_prefill();
  for (std::int64_t i = 0; i < s.decode; ++i) {
    const bool turn = scenarios::run_events(*cache, s, i, run);
    run(s.prompt + i, 1);
    if (turn) cache->end_prefill();
  }
  return bits;
}

}  // namespace

TEST_CASE("rows that are rotated already give the same outputs, or the record says why they need to be as before RoPE", "[conformance][rotation]") {
  for (const Method* m : cached_methods()) {
    int compared = 0, differing = 0;
    // A method that says it needs them is drawn until a setting shows it.
    const int least = std::max(6, draws() / 50), most = m->needs_unrotated != nullptr ? std::max(least, 40) : least;
    for (int attempt = 0; attempt < least || (differing == 0 && attempt < most); ++attempt) {
      const Scenario s = rotating(*m, static_cast<std::uint64_t>(attempt) + 900000);
      CacheShape bare = s.shape;
      for (LayerClass& c : bare.classes) c.rope = {};
      if (why_not(*m, s.row, s.shape) || why_not(*m, s.row, bare)) continue;
      CAPTURE(s.describe());
      const TensorMap trained = scenarios::trained_inputs(*m, s.row, s.shape, s.prompt, s.seed);
      const bool differs = outputs(s, s.shape, trained, false) != outputs(s, bare, trained, true);
      const bool said = m->needs_unrotated != nullptr && m->needs_unrotated(s.row).has_value();
      compared += 1;
      differing += differs ? 1 : 0;
      if (differs) CHECK(said);
    }
    CAPTURE(m->slug);
    CHECK(compared > 0);
    if (m->needs_unrotated != nullptr) CHECK(differing > 0);  // a record that asks for more than it needs refuses for nothing
  }
}

// dKV-Cache against the official code: which tokens' rows a step leaves in place, and how many tokens each step decodes.
#include <algorithm>
#include <cstring>
#include <span>

#include "reference/compose/recipe.hpp"
#include "reference/eviction/dkv_cache/schedule.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace dkv_cache_golden {  // a batch of tests compiles as one file

namespace {

/// Forwards those of one layer's tokens whose flag is 0.
void forward(KvCache& cache, std::span<const std::int64_t> cached) {
  std::vector<std::int64_t> positions;
  for (std::size_t t = 0; t < cached.size(); ++t)
    if (cached[t] == 0) positions.push_back(static_cast<std::int64_t>(t));
  const auto n = static_cast<std::int64_t>(positions.size());
  Array rows({1, n, 8}), out({1, n, 8});
  StepInput in{.q = rows.view(), .k = rows.view(), .v = rows.view(), .positions = {positions.data(), {n}}};
  in.mask.kind = MaskKind::bidirectional;
  cache.forward(0, in, out.view());
}

std::vector<std::int64_t> positions_held(const KvCache& cache) {
  const auto buffers = cache.buffers();
  const NamedBuffer& held = find_buffer(buffers, "layer0/positions");
  std::vector<std::int64_t> positions;
  for (std::size_t i = 0; i < held.bytes.size(); i += 4) {
    std::int32_t at = 0;
    std::memcpy(&at, held.bytes.data() + i, sizeof at);
    positions.push_back(at);
  }
  return positions;
}

}  // namespace

TEST_CASE("dKV-Cache holds after every step the rows that the official code holds", "[golden]") {
  int compared = 0;
  for (const GoldenCase& g : golden_cases("dkv_cache")) {
    CAPTURE(g.name());
    if (!g.has("decoded")) continue;
    const auto tokens = g.parameter<std::int64_t>("tokens"), steps = g.parameter<std::int64_t>("steps");
    const std::vector<std::int64_t> decoded = g.integers("decoded").values, none(static_cast<std::size_t>(tokens), 0);
    const MethodChoice m = parse_choice("dkv_cache");
    const auto cache = m.method->open(m.row, uniform_shape(1, 1, 1, 8, Dtype::f32), {});
    // A step computes what was not decoded one step earlier, and keeps what is decoded when it begins.
    for (std::int64_t step = 0; step <= steps; ++step) {
      const auto at = [&](std::int64_t which) { return std::span(decoded).subspan(static_cast<std::size_t>(which * tokens), static_cast<std::size_t>(tokens)); };
      forward(*cache, step == 0 ? std::span<const std::int64_t>(none) : at(step - 1));
      if (step == 0) cache->end_prefill();
      for (std::int64_t t = 0; t < tokens; ++t)
        if (at(step)[static_cast<std::size_t>(t)] == 0) cache->notify({.kind = EventKind::span_over, .first = t, .last = t + 1});
      check_exact(g, cat("cache_step", step), positions_held(*cache));
      ++compared;
    }
  }
  CHECK(compared >= 11);
}

TEST_CASE("dKV-Cache decodes as many tokens in each step as the official code", "[golden]") {
  int compared = 0;
  for (const GoldenCase& g : golden_cases("dkv_cache")) {
    CAPTURE(g.name());
    if (!g.has("counts")) continue;
    const IntTensor mask = g.integers("mask");
    const auto steps = g.parameter<std::int64_t>("steps"), width = mask.dims[1];
    std::vector<std::int64_t> ours;
    for (std::int64_t row = 0; row < mask.dims[0]; ++row) {
      const auto masked = std::count(mask.values.begin() + row * width, mask.values.begin() + (row + 1) * width, 1);
      for (std::int64_t i = 0; i < steps; ++i) ours.push_back(methods::dkv::decoded_before(masked, steps, i + 1) - methods::dkv::decoded_before(masked, steps, i));
    }
    check_exact(g, "counts", ours);
    ++compared;
  }
  CHECK(compared >= 2);
}

}  // namespace dkv_cache_golden

// ThinK against kvpress and KVCache-Factory: which key channels stay, and what is left of the keys.
#include <algorithm>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

TEST_CASE("ThinK: the same channels of every head stay, and the same values of older keys", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("think")) {
    CAPTURE(g.name());
    const bool kvpress = g.has("q_pre");
    const Array q = without_batch(g.floats(kvpress ? "q_pre" : "q")), k = without_batch(g.floats("k"));
    const std::int64_t n = k.dims()[1], dim = k.dims()[2];
    const int heads = static_cast<int>(k.dims()[0]);
    RopeSpec rope;
    if (kvpress) rope = {.base = 10000.0, .rotary_dim = static_cast<int>(dim)};
    const CacheShape shape = uniform_shape(1, static_cast<int>(q.dims()[0]), heads, static_cast<int>(dim), Dtype::f32, rope);
    const MethodChoice m =
        kvpress ? parse_choice(cat("think:recent_window=0,observation_window=", g.parameter<std::int64_t>("window_size"), ",ratio=",
                                   g.parameter<double>("key_channel_compression_ratio")))
                : parse_choice(cat("think:recent_window=", g.parameter<std::int64_t>("recent_size"), ",ratio=", g.parameter<double>("ratio")));
    const auto store = m.method->open_side(m.row, shape.classes.front(), 0, Side::key, Dtype::f32);
    std::vector<std::int64_t> positions;
    for (std::int64_t t = 0; t < n; ++t) positions.push_back(t);
    store->observe({.q = q.view(), .k = k.view(), .v = k.view(), .positions = {positions.data(), {n}}});  // keys come as they are cached
    store->append(k.view());
    store->settle(true);
    std::vector<NamedBuffer> buffers;
    store->buffers("", buffers);
    std::vector<std::int64_t> mask, pruned;
    std::vector<float> thin;
    for (int h = 0; h < heads; ++h) {
      const auto& bits = find_buffer(buffers, cat("channels/head", h)).bytes;
      std::vector<std::int64_t> kept;
      for (std::int64_t c = 0; c < dim; ++c) {
        mask.push_back((std::to_integer<int>(bits[static_cast<std::size_t>(c / 8)]) >> (c % 8)) & 1);
        if (mask.back() == 0) pruned.push_back(c);
        else kept.push_back(c);
      }
      Array rows({n, dim});
      store->read(h, 0, rows.view());
      const std::int64_t old = kvpress ? n : n - g.parameter<std::int64_t>("recent_size");
      for (std::int64_t t = 0; t < old; ++t)
        for (const std::int64_t c : kept) thin.push_back(rows.view()(t, c));
    }
    if (kvpress) {
      check_exact(g, "pruned", pruned);
    } else {
      check_exact(g, "keep_mask", mask);
      check_exact(g, "keys_pruned", thin);
    }
  }
}

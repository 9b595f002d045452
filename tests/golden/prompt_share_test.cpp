// Methods that drop a share of a prompt for all heads of a layer alike (PrefixKV, Elastic Cache) against the released codes.
#include <algorithm>
#include <cstring>

#include "core/errors.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/eviction/prefixkv/profile.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// The case's queries and keys where it has them, with values that number the tokens; nothing but numbers for other layers and steps.
void feed(KvCache& cache, const GoldenCase& g, const CacheShape& shape, int layer, std::int64_t first, std::int64_t n) {
  const LayerClass& c = shape.class_of(layer);
  const bool given = first == 0 && g.has(cat("q_layer", layer));
  const Array q = given ? without_batch(g.floats(cat("q_layer", layer))) : Array({c.q_heads, n, c.k_dim});
  const Array k = given ? without_batch(g.floats(cat("k_layer", layer))) : Array({c.kv_heads, n, c.k_dim});
  Array v({c.kv_heads, n, c.v_dim}), out({c.q_heads, n, c.v_dim});
  std::vector<std::int64_t> positions;
  for (std::int64_t i = 0; i < n; ++i) {
    positions.push_back(first + i);
    for (int h = 0; h < c.kv_heads; ++h) v.view()(h, i, 0) = static_cast<float>(first + i);
  }
  cache.forward(layer, {.q = q.view().slice(1, 0, n), .k = k.view().slice(1, 0, n), .v = v.view(), .positions = {positions.data(), {n}}}, out.view());
}

std::vector<std::int64_t> held(const KvCache& cache, const CacheShape& shape, int layer) {
  std::vector<std::int64_t> tokens;
  const auto buffers = cache.buffers();
  const auto& bytes = find_buffer(buffers, cat("layer", layer, "/v_rows/head1")).bytes;
  for (std::size_t at = 0; at < bytes.size(); at += static_cast<std::size_t>(shape.class_of(layer).v_dim) * sizeof(float)) {
    float token = 0;
    std::memcpy(&token, bytes.data() + at, sizeof token);
    tokens.push_back(static_cast<std::int64_t>(token));
  }
  return tokens;
}

}  // namespace

TEST_CASE("PrefixKV: the same numbers of tokens leave the layers", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("prefixkv")) {
    if (!g.has("forget")) continue;
    CAPTURE(g.name());
    const NamedTensor sums = g.floats("scores");
    std::vector<std::vector<double>> scores;
    for (std::int64_t l = 0; l < sums.dims[0]; ++l)
      scores.emplace_back(sums.values.begin() + l * sums.dims[1], sums.values.begin() + (l + 1) * sums.dims[1]);
    check_exact(g, "forget", methods::prefixkv_parts::leave_by_prefix(std::move(scores), g.parameter<double>("target"), whole(g, "protect")));
  }
}

TEST_CASE("PrefixKV: the same tokens stay in every layer, after the prompt and after further steps", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("prefixkv")) {
    if (!g.has("q_layer0")) continue;
    CAPTURE(g.name());
    const int layers = static_cast<int>(whole(g, "layers")), heads = static_cast<int>(whole(g, "heads"));
    const std::int64_t prompt = whole(g, "tokens");
    const CacheShape shape = uniform_shape(layers, heads, heads, static_cast<int>(whole(g, "head_dim")), Dtype::f32);
    TensorMap file;
    const auto shares = g.floats("ratios").values;
    for (int l = 0; l < layers && !g.parameter<bool>("profile"); ++l) file[cat("layer", l, ".removed_share")] = {.dims = {1}, .values = {shares[static_cast<std::size_t>(l)]}};
    const MethodChoice m = parse_choice(cat("prefixkv:ratio=", g.parameter<double>("ratio"), ",sinks=", whole(g, "start_size"), ",distance=", whole(g, "distance")));
    const auto cache = m.method->open(m.row, shape, {.trained = file.empty() ? nullptr : &file});
    for (int l = 0; l < layers; ++l) feed(*cache, g, shape, l, 0, prompt);
    cache->end_prefill();
    for (int l = 0; l < layers; ++l)
      if (g.has(cat("kept_prefill_layer", l))) check_exact(g, cat("kept_prefill_layer", l), held(*cache, shape, l));
    for (std::int64_t t = 0; t < whole(g, "steps"); ++t)
      for (int l = 0; l < layers; ++l) feed(*cache, g, shape, l, prompt + t, 1);
    for (int l = 0; l < layers; ++l)
      if (g.has(cat("kept_decode_layer", l))) check_exact(g, cat("kept_decode_layer", l), held(*cache, shape, l));
  }
}

TEST_CASE("Elastic Cache: its released choice keeps, merges and later drops the same rows", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("elastic_cache")) {
    if (!g.has("k_layer0")) continue;
    CAPTURE(g.name());
    const Array q = without_batch(g.floats("q_layer0")), k = without_batch(g.floats("k_layer0")), v = without_batch(g.floats("v_layer0"));
    const std::int64_t prompt = whole(g, "tokens"), steps = whole(g, "steps"), dim = whole(g, "head_dim");
    const int heads = static_cast<int>(whole(g, "heads"));
    const CacheShape shape = uniform_shape(1, heads, heads, static_cast<int>(dim), Dtype::f32);
    const MethodChoice m = parse_choice(cat("elastic_cache:selection=released,ratio=", g.parameter<double>("ratio"), ",sinks=", whole(g, "start_size"), ",distance=",
                                            whole(g, "distance")));
    const auto cache = m.method->open(m.row, shape, {});
    const auto forward = [&](std::int64_t first, std::int64_t n) {
      std::vector<std::int64_t> positions;
      for (std::int64_t i = 0; i < n; ++i) positions.push_back(first + i);
      const Array none({heads, n, dim});
      Array out({heads, n, dim});
      const bool in_prompt = first == 0;
      cache->forward(0, {.q = in_prompt ? q.view() : none.view(), .k = k.view().slice(1, first, n), .v = in_prompt ? v.view() : none.view(), .positions = {positions.data(), {n}}},
                     out.view());
    };
    const auto rows = [&](const char* side) {  // [heads][n * dim]
      std::vector<std::vector<float>> all;
      const auto buffers = cache->buffers();
      for (int h = 0; h < heads; ++h) {
        const auto& bytes = find_buffer(buffers, cat("layer0/", side, "_rows/head", h)).bytes;
        std::memcpy(all.emplace_back(bytes.size() / sizeof(float)).data(), bytes.data(), bytes.size());
      }
      return all;
    };
    const auto flat = [](const std::vector<std::vector<float>>& parts) {
      std::vector<float> all;
      for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
      return all;
    };
    forward(0, prompt);
    cache->end_prefill();
    const std::vector<float> before = rows("k").front();
    check_bound(g, "keys_prefill_layer0", flat(rows("k")));
    if (g.has("values_prefill_layer0")) check_bound(g, "values_prefill_layer0", flat(rows("v")));
    std::vector<std::int64_t> lengths;
    for (std::int64_t t = 0; t < steps; ++t) {
      forward(prompt + t, 1);
      lengths.push_back(cache->kept(0, 0).value);
    }
    check_exact(g, "lengths", lengths);
    // Slots of the cut prompt and generated tokens (1000 and up) by the keys that are left.
    std::vector<std::int64_t> slots;
    const std::vector<float> after = rows("k").front();
    const auto width = static_cast<std::size_t>(dim);
    const auto is_row = [&](std::size_t at, const float* row) { return std::memcmp(after.data() + at, row, width * sizeof(float)) == 0; };
    for (std::size_t at = 0; at < after.size(); at += width) {
      for (std::size_t s = 0; s < before.size() / width; ++s)
        if (is_row(at, before.data() + s * width)) slots.push_back(static_cast<std::int64_t>(s));
      for (std::int64_t t = 0; t < steps; ++t)
        if (is_row(at, k.view().row(0, prompt + t).data())) slots.push_back(1000 + t);
    }
    check_exact(g, "slots_after_decode", slots);
  }
}

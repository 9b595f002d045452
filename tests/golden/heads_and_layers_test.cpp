// Eviction methods that tell heads or layers apart (DuoAttention, CAKE, KVzip), and MPCache, whose heads choose clusters, against the released codes.
#include <algorithm>
#include <cstring>

#include "core/errors.hpp"
#include "core/rope.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/eviction/cake/scores.hpp"
#include "reference/primitives/eviction/allocators.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// Numbered values, so that rows name their tokens; keys and queries do not count.
void feed(KvCache& cache, const CacheShape& shape, int layer, std::int64_t first, std::int64_t n) {
  const LayerClass& c = shape.class_of(layer);
  Array q({c.q_heads, n, c.k_dim}), k({c.kv_heads, n, c.k_dim}), v({c.kv_heads, n, c.v_dim}), out({c.q_heads, n, c.v_dim});
  std::vector<std::int64_t> positions;
  for (std::int64_t i = 0; i < n; ++i) {
    positions.push_back(first + i);
    for (int h = 0; h < c.kv_heads; ++h) v.view()(h, i, 0) = static_cast<float>(first + i);
  }
  cache.forward(layer, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {positions.data(), {n}}}, out.view());
}

std::vector<std::int64_t> held(const KvCache& cache, const CacheShape& shape, int layer, int head) {
  std::vector<std::int64_t> tokens;
  const auto buffers = cache.buffers();
  const auto& bytes = find_buffer(buffers, cat("layer", layer, "/v_rows/head", head)).bytes;
  for (std::size_t at = 0; at < bytes.size(); at += static_cast<std::size_t>(shape.class_of(layer).v_dim) * sizeof(float)) {
    float token = 0;
    std::memcpy(&token, bytes.data() + at, sizeof token);
    tokens.push_back(static_cast<std::int64_t>(token));
  }
  return tokens;
}

}  // namespace

TEST_CASE("DuoAttention: the same heads keep every token", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("duo_attention")) {
    if (!g.has("noise")) continue;
    CAPTURE(g.name());
    const NamedTensor gates = g.floats("gates"), noise = g.floats("noise");
    const int layers = static_cast<int>(gates.dims[0]), heads = static_cast<int>(gates.dims[1]);
    const CacheShape shape = uniform_shape(layers, heads, heads, 2, Dtype::f32);
    TensorMap file;
    for (int l = 0; l < layers; ++l) {
      NamedTensor& t = file[cat("layer", l, ".gates")];
      t.dims = {heads};
      for (int h = 0; h < heads; ++h) {
        const auto at = static_cast<std::size_t>(l * heads + h);
        t.values.push_back(gates.values[at] + noise.values[at]);
      }
    }
    const MethodChoice m = parse_choice(cat("duo_attention:sinks=1,recent_window=1,sparsity=", g.parameter<double>("sparsity")));
    const auto cache = m.method->open(m.row, shape, {.trained = &file});
    for (int l = 0; l < layers; ++l) feed(*cache, shape, l, 0, 4);
    cache->end_prefill();
    std::vector<std::int64_t> full;
    for (int l = 0; l < layers; ++l)
      for (int h = 0; h < heads; ++h) full.push_back(cache->kept(l, h) == 4_tok ? 1 : 0);
    check_exact(g, "full", full);
  }
}

TEST_CASE("DuoAttention: streaming heads hold the same positions after every chunk", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("duo_attention")) {
    if (!g.has("full_heads")) continue;
    CAPTURE(g.name());
    const IntTensor full = g.integers("full_heads");
    const int layers = static_cast<int>(full.dims[0]), heads = static_cast<int>(full.dims[1]);
    const CacheShape shape = uniform_shape(layers, static_cast<int>(whole(g, "q_heads")), heads, 2, Dtype::f32);
    TensorMap file;
    for (int l = 0; l < layers; ++l)
      for (int h = 0; h < heads; ++h) {
        NamedTensor& t = file[cat("layer", l, ".gates")];
        t.dims = {heads};
        t.values.push_back(static_cast<float>(full.values[static_cast<std::size_t>(l * heads + h)]));
      }
    const auto count = std::ranges::count(full.values, 1);
    const double n = static_cast<double>(full.values.size()), streaming = n - static_cast<double>(count);
    const double sparsity = std::clamp((streaming - 0.5) / (n - 1), 0.0, 1.0);  // a quantile between both classes
    const MethodChoice m = parse_choice(cat("duo_attention:sinks=", whole(g, "sink_size"), ",recent_window=", whole(g, "recent_size"), ",sparsity=", sparsity));
    const auto cache = m.method->open(m.row, shape, {.trained = &file});
    std::int64_t first = 0;
    const auto chunks = g.parameters().at("chunks").get<std::vector<std::int64_t>>();
    for (std::size_t i = 0; i < chunks.size(); ++i) {
      for (int l = 0; l < layers; ++l) feed(*cache, shape, l, first, chunks[i]);
      if (i == 0) cache->end_prefill();
      first += chunks[i];
      std::vector<std::int64_t> lengths;
      bool compared = false;
      for (int l = 0; l < layers; ++l) {
        lengths.push_back(first);
        for (int h = 0; h < heads; ++h) {
          if (full.values[static_cast<std::size_t>(l * heads + h)] == 1) {
            CHECK(cache->kept(l, h) == Tokens(first));
          } else if (!compared) {
            check_exact(g, cat("stream_chunk", i), held(*cache, shape, l, h));
            compared = true;
          }
        }
      }
      check_exact(g, cat("full_len_chunk", i), lengths);
    }
  }
}

TEST_CASE("CAKE shares its budget over layers, and cuts them in a cascade, as the released code does", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("cake")) {
    CAPTURE(g.name());
    if (g.has("raw")) {
      const auto raw = g.floats("raw").values;
      check_exact(g, "budgets", eviction::share_by_preference({raw.begin(), raw.end()}, whole(g, "total_budget"), whole(g, "seq_len")));
    }
    if (g.has("pref_scores")) {
      const auto asked = g.floats("pref_scores").values;
      const std::int64_t rows = whole(g, "tokens"), most = whole(g, "cache_size") + whole(g, "window_size");
      const auto ours = rows <= most ? eviction::Counts(asked.size(), rows)
                                     : methods::cake_parts::layer_rows({asked.begin(), asked.end()}, rows, Tokens(whole(g, "cache_size")),
                                                                       Tokens(whole(g, "window_size")), g.parameter<bool>("use_cascading"));
      const auto theirs = g.integers("cache_lengths").values;
      CHECK(ours == eviction::Counts(theirs.end() - static_cast<std::ptrdiff_t>(asked.size()), theirs.end()));
    }
    if (g.has("attn")) {  // a step: the row of weights before the window, pooled
      const NamedTensor attention = g.floats("attn");
      const std::int64_t n = attention.dims[3], window = whole(g, "window_size"), kv_heads = whole(g, "kv_heads"), group = whole(g, "q_heads") / kv_heads;
      std::vector<std::int64_t> kept;
      for (std::int64_t h = 0; h < kv_heads; ++h) {
        std::vector<std::vector<float>> heads;
        for (std::int64_t i = 0; i < group; ++i) {
          const auto row = attention.values.begin() + (h * group + i) * n;
          heads.emplace_back(row, row + n - window);
        }
        const auto best = top_k(methods::cake_parts::pooled_mean(heads, 5), std::min(whole(g, "hh_size"), n - window));
        kept.insert(kept.end(), best.begin(), best.end());
        for (std::int64_t t = n - window; t < n; ++t) kept.push_back(t);
      }
      if (g.selection_margin().value_or(1.0) > 0) check_set(g, "kept_sorted", kept);
    }
  }
}

TEST_CASE("CAKE keeps of a prompt what the released forward keeps in every layer", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("cake")) {
    if (!g.has("q_layer0")) continue;
    CAPTURE(g.name());
    const int layers = static_cast<int>(whole(g, "layers"));
    const std::int64_t prompt = whole(g, "tokens");
    const CacheShape shape = uniform_shape(layers, static_cast<int>(whole(g, "q_heads")), static_cast<int>(whole(g, "kv_heads")),
                                           static_cast<int>(whole(g, "head_dim")), Dtype::f32);
    const MethodChoice m = parse_choice(cat("cake:budget=", whole(g, "cache_size"), ",observation_window=", whole(g, "window_size"), ",tau1=",
                                            g.parameter<double>("tau1"), ",tau2=", g.parameter<double>("tau2"), ",gamma=", g.parameter<double>("gamma"),
                                            ",cascade=", g.parameter<bool>("use_cascading") ? "true" : "false"));
    const auto cache = m.method->open(m.row, shape, {});
    for (int l = 0; l < layers; ++l) {
      const Array q = without_batch(g.floats(cat("q_layer", l))), k = without_batch(g.floats(cat("k_layer", l)));
      Array v({k.dims()[0], prompt, k.dims()[2]}), out({q.dims()[0], prompt, k.dims()[2]});
      std::vector<std::int64_t> positions;
      for (std::int64_t t = 0; t < prompt; ++t) {
        positions.push_back(t);
        for (std::int64_t h = 0; h < k.dims()[0]; ++h) v.view()(h, t, 0) = static_cast<float>(t);
      }
      cache->forward(l, {.q = q.view().slice(1, 0, prompt), .k = k.view().slice(1, 0, prompt), .v = v.view(), .positions = {positions.data(), {prompt}}}, out.view());
    }
    cache->end_prefill();
    for (int l = 0; l < layers; ++l) {
      std::vector<std::int64_t> kept;
      for (int h = 0; h < shape.classes.front().kv_heads; ++h) {
        const auto of_head = held(*cache, shape, l, h);
        kept.insert(kept.end(), of_head.begin(), of_head.end());
      }
      check_exact(g, cat("kept_prefill_layer", l), kept);
    }
  }
}

namespace {

/// Context and repetitions of a recorded KVzip case through a cache; ends before the prompt does.
std::unique_ptr<KvCache> repeated_prompt(const GoldenCase& g, const CacheShape& shape, const std::string& setting) {
  const MethodChoice m = parse_choice(setting);
  auto cache = m.method->open(m.row, shape, {});
  const auto chunks = g.parameters().at("chunks").size();
  const std::int64_t context = whole(g, "context");
  const bool rotates = g.has("inv_freq");
  for (int l = 0; l < static_cast<int>(whole(g, "layers")); ++l) {
    const LayerClass& c = shape.class_of(l);
    const auto forward = [&](const Array& q, const Array& k, std::int64_t first, bool again) {
      const std::int64_t n = q.dims()[1];
      Array v({c.kv_heads, n, c.v_dim}), out({c.q_heads, n, c.v_dim});
      std::vector<std::int64_t> positions;
      std::vector<std::uint8_t> tree;
      for (std::int64_t i = 0; i < n; ++i) {
        positions.push_back(first + i);
        for (int h = 0; h < c.kv_heads; ++h) v.view()(h, i, 0) = static_cast<float>(first + i);
        for (std::int64_t j = 0; j < n; ++j) tree.push_back(j <= i ? 1 : 0);
      }
      AttentionMask mask{};
      if (again) mask = {.kind = MaskKind::tree, .tree = {tree.data(), {n, n}}};
      cache->forward(l, {.q = q.view(), .k = k.view(), .v = v.view(), .positions = {positions.data(), {n}}, .mask = mask}, out.view());
    };
    forward(Array({c.q_heads, context, c.k_dim}), without_batch(g.floats(cat("k_layer", l))), 0, false);
    for (std::size_t i = 0; i < chunks; ++i) {
      Array q = without_batch(g.floats(cat("q_chunk", i, "_layer", l)));
      std::vector<std::int64_t> positions;
      for (std::int64_t t = 0; t < q.dims()[1]; ++t) positions.push_back(context + t);
      if (rotates) RopeTable(RopeSpec{.base = 10000.0, .rotary_dim = c.k_dim}).apply(q.view(), positions);
      forward(q, without_batch(g.floats(cat("kr_chunk", i, "_layer", l))), context, true);
    }
  }
  return cache;
}

/// Scores of every layer, head and token behind the first `from`, as held before the prompt ends.
std::vector<float> repetition_scores(const KvCache& cache, const CacheShape& shape, int layers, std::int64_t from) {
  std::vector<float> scores;
  const auto buffers = cache.buffers();
  for (int l = 0; l < layers; ++l)
    for (int h = 0; h < shape.class_of(l).kv_heads; ++h) {
      const auto& bytes = find_buffer(buffers, cat("layer", l, "/state/head", h)).bytes;
      std::vector<float> row(bytes.size() / sizeof(float));
      std::memcpy(row.data(), bytes.data(), bytes.size());
      scores.insert(scores.end(), row.begin() + from, row.end());
    }
  return scores;
}

/// 1 where a pair of head and token stays, for the tokens from `from` on.
std::vector<std::int64_t> pairs_that_stay(KvCache& cache, const CacheShape& shape, int layers, std::int64_t from, std::int64_t context) {
  std::vector<std::int64_t> mask;
  cache.end_prefill();
  for (int l = 0; l < layers; ++l)
    for (int h = 0; h < shape.class_of(l).kv_heads; ++h) {
      const auto tokens = held(cache, shape, l, h);
      for (std::int64_t t = from; t < context; ++t) mask.push_back(std::ranges::binary_search(tokens, t) ? 1 : 0);
    }
  return mask;
}

}  // namespace

TEST_CASE("KVzip scores by what a repetition attends to and keeps the same pairs as the released codes", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("kvzip")) {
    const bool press = g.has("keep_mask");
    if (press && g.parameter<bool>("plus")) continue;
    CAPTURE(g.name());
    const int layers = static_cast<int>(whole(g, "layers")), heads = static_cast<int>(whole(g, "kv_heads"));
    const std::int64_t context = whole(g, "context"), sinks = whole(g, press ? "n_sink" : "sink");
    const CacheShape shape = uniform_shape(layers, static_cast<int>(whole(g, "q_heads")), heads, static_cast<int>(whole(g, "head_dim")), Dtype::f32);
    const auto& piece = g.parameters().at("chunks").at(0);
    const std::string setting = cat("kvzip:second_pass=caller,sinks=", sinks, ",chunk=", piece.at(1).get<std::int64_t>() - piece.at(0).get<std::int64_t>());
    if (press) {
      // Pairs that leave are a share of all, the sinks among them (their score is 1).
      const bool by_layer = g.parameter<bool>("layerwise");
      const std::int64_t together = by_layer ? heads : heads * layers, n = together * (context - sinks);
      const std::int64_t leave = static_cast<std::int64_t>(static_cast<double>(together * context) * g.parameter<double>("compression_ratio"));
      const auto cache = repeated_prompt(g, shape, cat(setting, ",keep_fraction=", (static_cast<double>(n - leave) + 0.5) / static_cast<double>(n), by_layer ? ",selection=layer" : ""));
      std::vector<float> scores = repetition_scores(*cache, shape, layers, 0);
      for (std::size_t at = 0; at < scores.size(); ++at)
        if (static_cast<std::int64_t>(at) % context < sinks) scores[at] = 1;
      check_bound(g, "scores", scores);
      check_exact(g, "keep_mask", pairs_that_stay(*cache, shape, layers, 0, context));
    } else {
      const std::string share = cat(setting, ",keep_fraction=", g.parameter<double>("ratio"));
      const auto pair = repeated_prompt(g, shape, share + ",selection=released"), uniform = repeated_prompt(g, shape, share + ",selection=head");
      check_bound(g, "scores", repetition_scores(*pair, shape, layers, sinks));
      check_exact(g, "valid_pair", pairs_that_stay(*pair, shape, layers, sinks, context));
      check_exact(g, "valid_uniform", pairs_that_stay(*uniform, shape, layers, sinks, context));
    }
  }
}

TEST_CASE("MPCache keeps and attends as the released code does", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("mpcache")) {
    if (!g.has("static_kept")) continue;
    CAPTURE(g.name());
    const int heads = static_cast<int>(whole(g, "heads"));
    const std::int64_t tokens = whole(g, "tokens");
    const Array q = without_batch(g.floats("q")), k = without_batch(g.floats("k")), v = without_batch(g.floats("v"));
    const CacheShape shape = uniform_shape(1, heads, heads, static_cast<int>(whole(g, "head_dim")), Dtype::f32);
    const MethodChoice m = parse_choice(cat("mpcache:shift_padding=true,threshold=", g.parameter<double>("static_threshold"), ",alpha=", g.parameter<double>("alpha"),
                                            ",coarse_keep=", g.parameter<double>("ratio1"), ",fine_keep=", g.parameter<double>("ratio2"), ",cluster=", whole(g, "cluster1")));
    const auto cache = m.method->open(m.row, shape, {}), numbered = m.method->open(m.row, shape, {});
    const auto run = [&](KvCache& to, const Array& values, std::int64_t first, std::int64_t n) {
      Array out({heads, n, v.dims()[2]});
      std::vector<std::int64_t> positions;
      for (std::int64_t i = 0; i < n; ++i) positions.push_back(first + i);
      to.forward(0, {.q = q.view().slice(1, first, n), .k = k.view().slice(1, first, n), .v = values.view().slice(1, first, n), .positions = {positions.data(), {n}}}, out.view());
      return out;
    };
    Array names({heads, v.dims()[1], v.dims()[2]});
    for (int h = 0; h < heads; ++h)
      for (std::int64_t t = 0; t < v.dims()[1]; ++t) names.view()(h, t, 0) = static_cast<float>(t);
    run(*numbered, names, 0, tokens);
    numbered->end_prefill();
    check_exact(g, "static_kept", held(*numbered, shape, 0, 0));
    run(*cache, v, 0, tokens);
    cache->end_prefill();
    for (std::int64_t step = 0; step < whole(g, "steps"); ++step) {
      const Array out = run(*cache, v, tokens + step, 1);
      if (g.has(cat("out_step", step))) check_bound(g, cat("out_step", step), out.values());
    }
  }
}

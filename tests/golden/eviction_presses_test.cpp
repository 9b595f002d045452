// Scores and wrappers of kvpress: which tokens they keep.
#include <algorithm>
#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/rope.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/primitives/eviction/observed.hpp"
#include "reference/primitives/eviction/pieces.hpp"
#include "reference/primitives/eviction/query_scorers.hpp"
#include "reference/primitives/eviction/signatures.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"
#include "tests/support/traced.hpp"

using namespace kvatlas;
using namespace kvatlas::eviction;
using namespace kvatlas::test;

namespace {

/// Keys alone; queries do not count.
Traced by_keys(const GoldenCase& g) {
  const Array k = without_batch(g.floats("k"));
  const Array q({k.dims()[0], k.dims()[1], k.dims()[2]});
  return Traced(q.view(), k.view());
}

void check_kept(const GoldenCase& g, std::vector<std::int64_t> ours) {
  if (g.selection_margin().value_or(1.0) > 0) check_set(g, g.has("kept_sorted") ? "kept_sorted" : "kept", ours);
}

/// A cache of one layer after the whole prompt.
std::vector<std::int64_t> kept_after_prompt(const GoldenCase& g, const std::string& setting) {
  CAPTURE(g.slug(), g.name(), setting);
  const Traced run = by_keys(g);
  const auto cache = run.open(setting);
  run.run(*cache, 0, run.tokens());
  cache->end_prefill();
  return tokens_held(*cache);
}

/// Scores of one layer against `scores`, and the best of them against what they keep.
void check_scores(const GoldenCase& g, const Scores& scores) {
  CAPTURE(g.slug(), g.name());
  std::vector<float> all;
  std::vector<std::int64_t> kept;
  for (const auto& head : scores) {
    all.insert(all.end(), head.begin(), head.end());
    const Slots best = top_k(head, whole(g, "n_kept"));
    kept.insert(kept.end(), best.begin(), best.end());
  }
  if (g.slug() != "non_causal_attn") check_bound(g, "scores", all);  // theirs are z-scores there
  check_kept(g, kept);
}

}  // namespace

TEST_CASE("pieces and blocks of kvpress keep the same tokens", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("chunk"))
    check_kept(g, kept_after_prompt(g, cat("chunk:compression_ratio=", g.parameter<double>("compression_ratio"), ",chunk_length=",
                                           whole(g, "chunk_length"), ",score=", g.parameter<std::string>("base"))));
  for (const GoldenCase& g : golden_cases("block")) {
    const auto kept = static_cast<std::int64_t>(static_cast<double>(whole(g, "tokens")) * (1 - g.parameter<double>("compression_ratio")));
    check_kept(g, kept_after_prompt(g, cat("block:budget=", kept, ",block_size=", whole(g, "block_size"), ",score=", g.parameter<std::string>("base"))));
  }
}

TEST_CASE("the decoding press cuts the cache after the same steps to the same tokens", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("decoding")) {
    CAPTURE(g.name());
    if (!g.has("k")) {  // their search for a ratio: it ends at the target, our budget
      std::vector<std::int64_t> ours;
      for (const std::int64_t length : g.integers("length").values) ours.push_back(std::min(length, whole(g, "target_size")));
      check_exact(g, "kept", ours);
      continue;
    }
    const Traced run = by_keys(g);
    const auto cache = run.open(cat("decoding:score=knorm,budget=", whole(g, "target_size"), ",interval=", whole(g, "compression_interval")));
    run.run(*cache, 0, whole(g, "tokens"));
    cache->end_prefill();
    std::vector<std::int64_t> lengths;
    for (std::int64_t s = 0; s < whole(g, "steps"); ++s) {
      run.run(*cache, whole(g, "tokens") + s, 1);
      lengths.push_back(cache->kept(0, 0).value);
    }
    check_exact(g, "lengths", lengths);
    check_set(g, "kept", tokens_held(*cache));
  }
}

TEST_CASE("directions of Q-Filters rank the same tokens", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("qfilter")) {
    CAPTURE(g.name());
    const Traced run = by_keys(g);
    const int layer = g.name().back() - '0';
    const NamedTensor all = g.floats("filters");
    const LayerClass& c = run.shape().classes.front();
    TensorMap file;
    const std::size_t size = static_cast<std::size_t>(c.kv_heads * c.k_dim);
    for (std::int64_t l = 0; l < all.dims[0]; ++l) {
      const auto first = all.values.begin() + l * static_cast<std::int64_t>(size);
      file[cat("layer", l, ".filters")] = {.dims = {c.kv_heads, c.k_dim}, .values = {first, first + static_cast<std::int64_t>(size)}};
    }
    // The case's layer is the one that is fed: its tokens are read from a cache of one layer with that layer's filters.
    file["layer0.filters"] = file[cat("layer", layer, ".filters")];
    const MethodChoice choice = parse_choice(cat("qfilter:budget=", whole(g, "n_kept")));
    const auto cache = choice.method->open(choice.row, run.shape(), {.trained = &file});
    run.run(*cache, 0, run.tokens());
    cache->end_prefill();
    check_kept(g, tokens_held(*cache));
  }
}

TEST_CASE("mean observed attention ranks tokens as kvpress does", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("observed_attention")) {
    const NamedTensor attention = g.floats("attn");
    const int q_heads = static_cast<int>(attention.dims[1]), kv_heads = static_cast<int>(whole(g, "kv_heads"));
    const std::int64_t tokens = attention.dims[2];
    const Traced run = random_traced(q_heads, kv_heads, tokens, 2, 1);  // for its shape
    TokenRows rows(kv_heads, 2, 2, Dtype::f32);
    rows.add_words("mass", 8);
    rows.append(run.k(), run.k());
    for (std::int64_t h = 0; h < q_heads; ++h)
      for (std::int64_t i = 0; i < tokens; ++i)
        for (std::int64_t j = 0; j <= i; ++j)
          rows.words(0).add(static_cast<int>(h / (q_heads / kv_heads)), j, num::to_mass(attention.values[static_cast<std::size_t>((h * tokens + i) * tokens + j)]));
    const LayerClass& c = run.shape().classes.front();
    const RopeTable rope(c.rope);
    check_scores(g, mean_observed().score({.c = c, .place = {}, .rows = rows, .queries = run.q(), .rope = rope}));
  }
}

TEST_CASE("attention within chunks without a mask ranks tokens as kvpress does", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("non_causal_attn")) {
    Array q = without_batch(g.floats("q_pre"));
    const Array k = without_batch(g.floats("k")), v = without_batch(g.floats("v"));
    const int dim = static_cast<int>(k.dims()[2]);
    std::vector<std::int64_t> positions;
    for (std::int64_t t = 0; t < k.dims()[1]; ++t) positions.push_back(t);
    const RopeTable rope({.base = g.parameter<double>("rope_base"), .rotary_dim = dim});
    rope.apply(q.view(), positions);
    const Traced run(q.view(), k.view());
    TokenRows rows(static_cast<int>(k.dims()[0]), dim, dim, Dtype::f32);
    rows.append(k.view(), v.view());
    check_scores(g, non_causal_attention({.chunk = whole(g, "chunk_size"), .padded = true})
                        .score({.c = run.shape().classes.front(), .place = {}, .rows = rows, .queries = q.view(), .rope = rope}));
  }
}

TEST_CASE("signatures of pages and their representatives are those of OpenVINO", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("kvcrush")) {
    CAPTURE(g.name());
    const std::vector<float> scores = g.floats("scores").values;
    const std::int64_t page = whole(g, "block_size");
    const auto as_bits = [&](const char* array) {
      const auto values = g.integers(array).values;
      return Signature(values.begin(), values.end());
    };
    const bool tied = g.parameter<std::string>("kind") != "normal";  // then they choose arbitrarily among equal scores
    const Signature theirs = as_bits("indicator_bits"), ours = better_half(scores);
    CHECK(std::ranges::count(ours, 1) == std::ranges::count(theirs, 1));
    if (!tied) check_exact(g, "indicator_bits", std::vector<std::int64_t>(ours.begin(), ours.end()));
    Signature anchor = as_bits("anchor");  // random ones come from their generator
    const std::string kind = g.parameter<std::string>("anchor");
    if (kind != "RANDOM") {
      const Anchor which = kind == "ZEROS" ? Anchor::zeros : kind == "ONES" ? Anchor::ones : kind == "MEAN" ? Anchor::mean : Anchor::alternating;
      anchor = anchor_of(which, theirs, page, [](std::int64_t) -> std::uint32_t { return 0; });
      check_exact(g, "anchor", std::vector<std::int64_t>(anchor.begin(), anchor.end()));
    }
    const std::vector<std::int64_t> distances = distances_to(anchor, theirs);
    check_exact(g, "distance", distances);
    std::vector<std::int64_t> kept;  // pages at equal distances are in any order there: the distances are what counts
    for (const std::int64_t p : representatives(g.integers("evicted_blocks").values, distances, whole(g, "budget")))
      kept.push_back(distances[static_cast<std::size_t>(p)]);
    check_exact(g, "kept_distance", kept);
  }
}

TEST_CASE("tokens leave below the threshold once they are out of the window, as in kvpress' dms", "[golden][eviction]") {
  for (const GoldenCase& g : golden_cases("dms")) {
    CAPTURE(g.name());
    const Traced run = by_keys(g);
    const auto cache = run.open(cat("dms:threshold=", g.parameter<double>("threshold"), ",recent_window=", whole(g, "sliding_window_size"),
                                    ",decoding=", g.parameter<bool>("decoding") ? "true" : "false"));
    run.run(*cache, 0, whole(g, "tokens"));
    cache->end_prefill();
    for (std::int64_t s = 0; s <= whole(g, "steps"); ++s) {
      if (s > 0) run.run(*cache, whole(g, "tokens") + s - 1, 1);
      const std::string array = cat("keep_step", s);
      if (!g.has(array)) continue;
      const std::int64_t tokens = whole(g, "tokens") + s;
      std::vector<std::int64_t> mask(static_cast<std::size_t>(whole(g, "kv_heads") * tokens), 0);
      for (std::int64_t h = 0; h < whole(g, "kv_heads"); ++h)
        for (const std::int64_t t : tokens_held(*cache, static_cast<int>(h))) mask[static_cast<std::size_t>(h * tokens + t)] = 1;
      check_exact(g, array, mask);
    }
  }
}
